// Draws the figures, and those that have a dark version again when the reader switches between light and dark.
// Plotly's full row of buttons would cover the titles. A finger on a figure scrolls the page; otherwise nobody could get past it on a phone.
const CONFIG = {displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]};
const figures = [], dark = matchMedia("(prefers-color-scheme: dark)"), finger = matchMedia("(pointer: coarse)").matches;
function draw({id, light, dark: night}) {
  const f = dark.matches && night || light;
  Plotly.newPlot(id, f.data, finger ? {...f.layout, dragmode: false} : f.layout, CONFIG);
}
dark.addEventListener("change", () => figures.forEach(draw));
