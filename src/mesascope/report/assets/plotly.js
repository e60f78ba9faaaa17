// Unpack plotly.js, which the page stores compressed, and run it. Browsers that have light-dark(), as page.css needs, can do so.
"use strict";
mesascope.loadPlotly = async () => {
  const packed = new Blob([mesascope.decodeBytes(document.getElementById("plotly").textContent)]);
  const source = await new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(mesascope.make("script", {}, source));
};
