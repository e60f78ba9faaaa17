// A link at every table that saves it as CSV: numbers without typographic signs, and no text that a spreadsheet would compute.
"use strict";
(() => {
  const SUPERSCRIPTS = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", NUMBER = /^-?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?(e-?\d+)?$/;
  const formatCell = text => {
    const plain = text.replace(/\s+/g, " ").trim();
    const number = plain.replace(/−/g, "-").replace(/ × 10([⁻⁰¹²³⁴-⁹]+)$/, (_, power) => `e${[...power].map(sign => "-0123456789"[SUPERSCRIPTS.indexOf(sign)]).join("")}`);
    if (NUMBER.test(number)) return number.replaceAll(",", "");
    const safe = /^[=+\-@−]./.test(plain) ? `'${plain}` : plain;
    return /[",;\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  mesascope.formatCsv = table => [...table.rows].map(row => [...row.cells].map(cell => formatCell(cell.innerText)).join(",")).join("\r\n") + "\r\n";
  mesascope.offerCsv = (table, name) => {
    const button = mesascope.make("button", { type: "button", class: "csv", "aria-label": `Download the table ${name} as CSV` }, "CSV");
    button.addEventListener("click", () => {
      const link = mesascope.make("a", { href: URL.createObjectURL(new Blob(["\ufeff", mesascope.formatCsv(table)], { type: "text/csv" })), download: `${name}.csv` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    (table.closest(".wide") || table).after(button);
  };
  for (const table of document.querySelectorAll("main table")) {
    const place = table.closest("[id]"), title = table.closest(".tables > div")?.querySelector("h3");
    mesascope.offerCsv(table, [place.id, title?.textContent].filter(Boolean).join(" "));
  }
})();
