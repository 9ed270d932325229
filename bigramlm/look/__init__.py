"""A page that shows what one trained model has learned.

`parts.js`, `passage.js`, `pairs.js`, `layers.js`, `sampling.js` and `page.js` form one script with the `base.js` of all
pages. They build the sections from a block of JSON, which contains a token's text once and refers to it by its number.
Matrices are bytes in base64, which are decoded when they are first shown. A section is built when it is on the screen,
and pointing at a token only looks numbers up, so that the page answers at once.

Texts come from a model's tokenizer and from any file, and must not be executed: Jinja escapes them, the scripts create
them as text nodes only, and a Content-Security-Policy allows only the two scripts of the page.
"""
