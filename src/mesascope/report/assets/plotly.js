// Unpack plotly.js, which the page stores compressed, and run it.
"use strict";
mesascope.loadPlotly = async () => {
  const source = await mesascope.unpackText(document.getElementById("plotly").textContent);
  document.head.append(mesascope.make("script", {}, source));
};
