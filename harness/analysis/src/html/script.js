"use strict";
// Draws every chart of the page from the data in it. No library, no network.
(() => {
  const charts = JSON.parse(document.getElementById("data").textContent);
  const NS = "http://www.w3.org/2000/svg";
  const dashes = ["", "7 4", "2 3", "12 5", "8 3 2 3"];
  const el = (name, attributes, parent, text) => {
    const node = document.createElementNS(NS, name);
    for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  };
  const colour = (s) => `var(--c${s.colour % 7})`;
  const show = (x) => {
    if (x === null || x === undefined) return "–";
    const a = Math.abs(x);
    return (x + 0 || 0).toLocaleString("en-US", { maximumFractionDigits: a < 10 ? 3 : a < 100 ? 1 : 0 });
  };
  // Round steps of 1, 2 or 5 times a power of ten that fill the range.
  const ticks = (low, high, wanted) => {
    const raw = (high - low) / Math.max(wanted, 1) || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw) || raw;
    const all = [];
    for (let t = Math.ceil(low / step); t * step <= high + step * 1e-9; t += 1) all.push(t * step);
    return all;
  };

  class Chart {
    constructor(figure, spec) {
      Object.assign(this, { figure, spec, axis: 0, hidden: new Set() });
      this.controls();
      this.plot = document.createElement("div");
      this.tip = document.createElement("div");
      this.tip.className = "tip";
      figure.append(this.plot, this.tip);
      figure.classList.add("live");
      new ResizeObserver(() => this.draw()).observe(figure);
      this.draw();
    }
    controls() {
      const bar = document.createElement("div");
      bar.className = "controls";
      const button = (text, pressed, act) => {
        const b = document.createElement("button");
        b.type = "button";
        b.append(text);
        b.setAttribute("aria-pressed", pressed);
        b.addEventListener("click", () => act(b));
        bar.append(b);
        return b;
      };
      const { axes, series } = this.spec;
      if (axes.length > 1) {
        const all = axes.map((name, i) => button(`by ${name}`, i === 0, () => {
          this.axis = i;
          all.forEach((b, j) => b.setAttribute("aria-pressed", i === j));
          this.draw();
        }));
        all.forEach((b) => b.classList.add("axis"));
      }
      if (series.length > 1) {
        series.forEach((s, i) => {
          const b = button(s.name, true, () => {
            if (!this.hidden.delete(i)) this.hidden.add(i);
            b.setAttribute("aria-pressed", !this.hidden.has(i));
            this.draw();
          });
          const mark = document.createElement("i");
          mark.style.background = s.dash
            ? `repeating-linear-gradient(90deg, ${colour(s)} 0 .3rem, transparent .3rem .45rem)` : colour(s);
          b.prepend(mark);
        });
      }
      if (bar.childNodes.length) this.figure.append(bar);
    }
    draw() {
      const width = Math.max(this.plot.clientWidth, 260);
      if (this.drawn === `${width} ${this.axis} ${[...this.hidden]}`) return;
      this.drawn = `${width} ${this.axis} ${[...this.hidden]}`;
      const shown = this.spec.series.filter((_, i) => !this.hidden.has(i));
      this.plot.replaceChildren();
      this.svg = el("svg", { role: "img", "aria-label": `${this.spec.title}. The figures are in the tables of this page.` });
      this.plot.append(this.svg);
      if (this.spec.kind === "bars") this.bars(shown, width); else this.lines(shown, width);
    }
    frame(width, height) {
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    }
    hover(node, text) {
      const at = (event) => {
        const box = this.figure.getBoundingClientRect();
        const r = node.getBoundingClientRect();
        this.place(text, (event.clientX || r.left + r.width / 2) - box.left, (event.clientY || r.top) - box.top);
      };
      const off = () => { this.tip.style.display = "none"; };
      for (const e of ["pointermove", "focus"]) node.addEventListener(e, at);
      for (const e of ["pointerleave", "blur"]) node.addEventListener(e, off);
    }
    place(text, x, y) {
      const box = this.figure.getBoundingClientRect();
      this.tip.textContent = text;
      this.tip.style.display = "block";
      this.tip.style.left = `${Math.max(4, Math.min(x + 12, box.width - this.tip.offsetWidth - 8))}px`;
      this.tip.style.top = `${Math.max(4, y - this.tip.offsetHeight - 10)}px`;
    }
    bars(shown, width) {
      const { origin, unit } = this.spec;
      const rows = shown.flatMap((s) => s.bars.map((b) => ({ s, b }))).sort((x, y) => x.b.row - y.b.row);
      const narrow = width < 560;
      const left = narrow ? 8 : Math.min(280, 24 + 6.6 * Math.max(4, ...rows.map((r) => r.b.label.length)));
      const [row, top] = [narrow ? 44 : 30, 8];
      const height = top + rows.length * row + 40;
      this.frame(width, height);
      const values = rows.flatMap(({ b }) => [b.value, b.low, b.high, b.mark, b.from, ...b.dots].filter((v) => v !== null));
      const low = Math.min(origin, ...values);
      const high = Math.max(origin, ...values) * 1.02 || 1;
      const right = width - 70;
      const x = (v) => left + ((v - low) / (high - low)) * (right - left);
      for (const t of ticks(low, high, narrow ? 3 : 6)) {
        el("line", { x1: x(t), x2: x(t), y1: top, y2: height - 36, stroke: "var(--line)" }, this.svg);
        el("text", { x: x(t), y: height - 20, "text-anchor": "middle", fill: "var(--soft)" }, this.svg, show(t));
      }
      el("text", { x: (left + right) / 2, y: height - 3, "text-anchor": "middle", fill: "var(--soft)" }, this.svg, this.spec.y);
      rows.forEach(({ s, b }, i) => {
        const y = top + i * row + (narrow ? 17 : 4);
        const h = row - (narrow ? 22 : 8);
        const label = narrow ? { x: left, y: y - 4 } : { x: left - 8, y: y + h / 2 + 4, "text-anchor": "end" };
        el("text", { ...label, fill: "var(--ink)" }, this.svg, b.label);
        const from = b.from === null ? origin : b.from;
        const [a, z] = [x(Math.min(from, b.value)), x(Math.max(from, b.value))];
        const bar = el("rect", { x: a, y, width: Math.max(1, z - a), height: h, rx: 2, fill: colour(s), tabindex: 0 }, this.svg);
        if (b.low !== null) {
          const mid = y + h / 2;
          el("path", { d: `M${x(b.low)} ${mid}H${x(b.high)}M${x(b.low)} ${mid - 4}v8M${x(b.high)} ${mid - 4}v8`, stroke: "var(--ink)", "stroke-width": 1.6 }, this.svg);
        }
        if (b.mark !== null) el("path", { d: `M${x(b.mark)} ${y - 2}v${h + 4}`, stroke: "var(--ink)", "stroke-width": 3 }, this.svg);
        for (const d of b.dots) el("circle", { cx: x(d), cy: y + h / 2, r: 2.6, fill: "var(--ground)", stroke: "var(--ink)" }, this.svg);
        const end = x(Math.max(b.value, origin, ...[b.high, b.mark, b.from].filter((v) => v !== null), ...b.dots)) + 7;
        el("text", { x: end, y: y + h / 2 + 4, fill: "var(--ink)" }, this.svg, show(b.value));
        const interval = b.low === null ? "" : `\n${b.interval ?? "interval"}: ${show(b.low)} to ${show(b.high)}`;
        const mark = b.mark === null ? "" : `\nplanned ${show(b.mark)} ${unit}`;
        this.hover(bar, `${b.label}\n${show(b.value)} ${unit}${interval}${mark}`);
      });
    }
    lines(shown, width) {
      const points = shown.flatMap((s) => s.y.map((y, i) => [s.x[this.axis][i], y]));
      const [right, top, height] = [width - 14, 10, Math.max(280, Math.min(420, width * 0.48))];
      const bottom = height - 44;
      this.frame(width, height);
      if (!points.length) return;
      const range = (i, zero, air) => {
        const all = points.map((p) => p[i]);
        const [a, b] = [zero ? 0 : Math.min(...all), Math.max(...all)];
        const pad = (b - a) * air || (b - a ? 0 : Math.abs(b) * 0.05 || 1);
        return [zero ? 0 : a - pad, b + pad];
      };
      const dots = this.spec.kind === "points";
      const [x0, x1] = range(0, dots, dots ? 0.04 : 0);
      const [y0, y1] = range(1, this.spec.zero, 0.04);
      const left = 34 + 7 * Math.max(...ticks(y0, y1, 6).map((t) => show(t).length));
      const x = (v) => left + ((v - x0) / (x1 - x0)) * (right - left);
      const y = (v) => bottom - ((v - y0) / (y1 - y0)) * (bottom - top);
      for (const t of ticks(y0, y1, 6)) {
        el("line", { x1: left, x2: right, y1: y(t), y2: y(t), stroke: "var(--line)" }, this.svg);
        el("text", { x: left - 6, y: y(t) + 4, "text-anchor": "end", fill: "var(--soft)" }, this.svg, show(t));
      }
      for (const t of ticks(x0, x1, width < 560 ? 4 : 8)) {
        el("text", { x: x(t), y: bottom + 18, "text-anchor": "middle", fill: "var(--soft)" }, this.svg, show(t));
      }
      el("line", { x1: left, x2: right, y1: bottom, y2: bottom, stroke: "var(--soft)" }, this.svg);
      el("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle", fill: "var(--soft)" }, this.svg, this.spec.axes[this.axis]);
      el("text", { x: 12, y: (top + bottom) / 2, transform: `rotate(-90 12 ${(top + bottom) / 2})`, "text-anchor": "middle", fill: "var(--soft)" }, this.svg, this.spec.y);
      const places = [];
      for (const s of shown) {
        const at = s.y.map((v, i) => [x(s.x[this.axis][i]), y(v)]);
        if (this.spec.kind === "lines") {
          const d = at.map(([a, b], i) => `${i ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
          el("path", { d, fill: "none", stroke: colour(s), "stroke-width": 2, "stroke-dasharray": dashes[s.dash % dashes.length], "stroke-linejoin": "round" }, this.svg);
        }
        if (this.spec.kind === "points") {
          at.forEach(([a, b], i) => {
            const dot = el("circle", { cx: a, cy: b, r: 6, fill: colour(s), tabindex: 0 }, this.svg);
            this.hover(dot, this.label(s, i));
          });
        } else {
          at.forEach(([a, b], i) => places.push({ a, b, text: this.label(s, i), colour: colour(s) }));
        }
      }
      if (places.length) this.nearest(places, width, height);
    }
    label(s, i) {
      const name = s.labels ? s.labels[i] : s.name;
      return `${name}\n${this.spec.axes[this.axis]} ${show(s.x[this.axis][i])}\n${this.spec.y} ${show(s.y[i])}`;
    }
    // One mark that follows the pointer to the nearest point, and the arrow keys along all of them.
    nearest(places, width, height) {
      const mark = el("circle", { r: 5, visibility: "hidden", stroke: "var(--ink)", "stroke-width": 1.5 }, this.svg);
      const cover = el("rect", { x: 0, y: 0, width, height, fill: "transparent", tabindex: 0, "aria-label": "Points; arrow keys go through them" }, this.svg);
      let at = 0;
      const tell = (i) => {
        at = i;
        const { a, b, text, colour: fill } = places[i];
        for (const [k, v] of Object.entries({ cx: a, cy: b, fill, visibility: "visible" })) mark.setAttribute(k, v);
        const box = this.figure.getBoundingClientRect();
        const svg = this.svg.getBoundingClientRect();
        this.place(text, svg.left - box.left + (a * svg.width) / width, svg.top - box.top + (b * svg.height) / height);
      };
      const off = () => { mark.setAttribute("visibility", "hidden"); this.tip.style.display = "none"; };
      cover.addEventListener("pointermove", (event) => {
        const svg = this.svg.getBoundingClientRect();
        const [px, py] = [((event.clientX - svg.left) * width) / svg.width, ((event.clientY - svg.top) * height) / svg.height];
        let best = 0;
        let least = Infinity;
        places.forEach(({ a, b }, i) => {
          const d = (a - px) ** 2 + (b - py) ** 2;
          if (d < least) [least, best] = [d, i];
        });
        tell(best);
      });
      cover.addEventListener("focus", () => tell(at));
      cover.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        tell((at + step + places.length) % places.length);
      });
      for (const e of ["pointerleave", "blur"]) cover.addEventListener(e, off);
    }
  }
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    new Chart(figure, charts[figure.dataset.chart]);
  }
})();
