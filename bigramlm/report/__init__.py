"""Tables of runs, statistics over seeds, and a self-contained report page.

Jinja fills in the page and escapes all values. Apart from the charts, the page works without scripts: `page.js` draws
the charts with plotly.js, from a block of JSON. Names are escaped before Plotly gets them, because Plotly interprets
HTML tags. As a second protection, a Content-Security-Policy allows only the two scripts, by their hashes; it allows
`eval`, because plotly.js uses it for the shaders of the parallel coordinates. To keep a click fast with hundreds of
runs, curves of one colour form one trace with gaps, and a chart is drawn only when it is on the screen.
"""
