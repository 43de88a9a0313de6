// What the widgets themselves cannot do: say when the figures are there to be drawn on and whether the page is dark, and give every
// control a name for screen readers.
const FIGURES = 3;
const PATIENCE = 10000;

function background(element) {
  for (let at = element; at; at = at.parentElement) {
    const parts = getComputedStyle(at).backgroundColor.match(/[\d.]+/g).map(Number);
    if (parts.length < 4 || parts[3] > 0) return parts;
  }
  return [255, 255, 255];
}

export default {
  render({ model, el }) {
    const root = () => el.closest(".si-explorer");
    let appeared = 0;
    let ready = false;
    const tell = () => {
      if (!ready) return;
      const [r, g, b] = background(el);
      model.set("dark", 0.2126 * r + 0.7152 * g + 0.0722 * b < 128);
      model.save_changes();
    };
    const name = () => {
      for (const [selector, attributes] of Object.entries(model.get("names")))
        for (const found of root()?.querySelectorAll(selector) ?? [])
          for (const [key, value] of Object.entries(attributes))
            if (found.getAttribute(key) !== value) found.setAttribute(key, value);
    };
    // A change that reaches plotly while it makes a figure stops that figure for good: nothing is sent, and nothing can be
    // clicked, before all have appeared.
    const begin = () => {
      if (ready) return;
      ready = true;
      root()?.setAttribute("data-ready", "true");
      model.set("shown", model.get("shown") + 1);
      tell();
    };
    const made = (event) => {
      if (root()?.contains(event.detail.element) && ++appeared === FIGURES) begin();
    };
    document.addEventListener("plotlywidget-after-render", made);
    const patience = setTimeout(begin, PATIENCE);
    const themes = new MutationObserver(() => requestAnimationFrame(tell));
    themes.observe(document.body, { attributes: true });
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", tell);
    const parts = new MutationObserver(name);
    const mounted = requestAnimationFrame(() => {
      if (root()) parts.observe(root(), { childList: true, subtree: true });
      name();
    });
    model.on("change:names", name);
    return () => {
      cancelAnimationFrame(mounted);
      clearTimeout(patience);
      document.removeEventListener("plotlywidget-after-render", made);
      themes.disconnect();
      parts.disconnect();
      scheme.removeEventListener("change", tell);
      model.off("change:names", name);
    };
  },
};
