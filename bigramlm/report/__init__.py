"""Tables of runs, statistics over seeds, and a self-contained report page.

`colours.js`, `charts.js`, `fields.js`, `vitals.js` and `page.js`, which form one script with the `base.js` of all
pages, draw the charts with plotly.js from a block of JSON. Tables and samples work without JavaScript. Runs on
different texts are in separate sections of the page.

Text from a run, such as a name, may contain HTML and must not be executed:
- Jinja fills in the page and escapes all values.
- The script escapes names before it passes them to Plotly, because Plotly interprets HTML tags.
- A Content-Security-Policy allows only the two scripts of the page, identified by their hashes. It also allows `eval`,
  because plotly.js uses `eval` for the shaders of the parallel coordinates.

Clicks stay fast with hundreds of runs, because all curves of one colour form one trace with gaps, and because a chart
is drawn only when it is on the screen.
"""
