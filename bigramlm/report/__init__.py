"""Tables of runs, statistics over seeds, and a page about runs that is complete in itself.

Jinja fills the page and escapes whatever it is given. The page is whole without a script, except for the charts:
`page.js` draws them with plotly.js, from a block of JSON. Names go to Plotly escaped, because it reads tags in them. A
Content-Security-Policy with the hashes of the two scripts is the second wall; it allows `eval`, with which plotly.js
makes the shaders of the parallel coordinates. Curves of one colour are one trace with gaps, and charts are drawn when
they are on the screen: that keeps a click fast with hundreds of runs.
"""
