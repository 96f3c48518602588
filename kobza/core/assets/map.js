/* The map of many points: canvas 2-D, no WebGL, no library, no eval; works from file://.
 *
 * Every <div class="kz-map"> holds a JSON block written by core/map_html.py. Points are blended into one
 * ImageData by hand, because 49,152 canvas calls a frame are too slow. Names and units:
 *   u, v     a point in the unit of the data after turning (3-D only), both axes on one scale
 *   sx, sy   the same point in device pixels; points outside the view lie outside the canvas
 *   scale    device pixels per unit of the data
 */
(function () {
  "use strict";
  const { GROUPS, MOST_ZOOM, RAMPS, brush, decode, luminance, make, numbers, rgb, shades, short } = window.kobzaPoints;

  class PointMap {
    constructor(root) {
      const began = performance.now();
      this.root = root;
      const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
      this.data = data;
      this.labels = data.labels;
      this.x = numbers(data.x);
      this.y = numbers(data.y);
      this.z = data.z ? numbers(data.z) : null;
      this.count = this.x.length;
      this.colors = data.colors.map((c) => ({ name: c.name, low: c.from, high: c.to, values: numbers(c) }));
      this.groups = data.groups ? { names: data.groups.names, of: decode(data.groups.codes) } : null;
      this.hiddenGroups = new Set();
      this.sx = new Float32Array(this.count);
      this.sy = new Float32Array(this.count);
      this.turn = { yaw: 0.6, pitch: 0.35 };
      this.chosen = -1;
      this.hovered = -1;
      this.found = [];
      this.build();
      this.listen();
      this.theme();
      this.resize();
      root.dataset.ready = String(Math.round(performance.now() - began));
    }

    // ---- the page around the points -------------------------------------------------------------------

    build() {
      const stage = (this.stage = make("div", null, "kz-map-stage"));
      this.root.querySelector(".kz-map-place").replaceWith(stage);
      this.base = make("canvas", stage, "kz-map-base");
      this.over = make("canvas", stage, "kz-map-over");
      this.over.tabIndex = 0;
      this.over.setAttribute("role", "application");
      this.over.setAttribute("aria-label", this.data.about);
      this.axes = make("div", stage, "kz-map-axes", this.data.axes);
      this.buildBar(stage);
      this.buildLegend(stage);
      this.tip = make("div", stage, "kz-map-tip");
      this.tip.hidden = true;
      this.live = make("div", stage, "kz-map-live");
      this.live.setAttribute("aria-live", "polite");
    }

    buildBar(stage) {
      const bar = make("div", stage, "kz-map-bar");
      const find = make("div", bar, "kz-map-find");
      this.input = make("input", find);
      this.input.type = "search";
      this.input.placeholder = "find among " + this.count.toLocaleString("en-US");
      this.hits = make("ul", find, "kz-map-hits");
      this.hits.hidden = true;
      this.hits.id = "kz-hits-" + Math.random().toString(36).slice(2);
      this.hits.setAttribute("role", "listbox");
      const set = { role: "combobox", "aria-label": "find a label", "aria-controls": this.hits.id, "aria-expanded": "false", autocomplete: "off", spellcheck: "false" };
      Object.keys(set).forEach((key) => this.input.setAttribute(key, set[key]));
      make("div", bar, "kz-map-space");
      if (this.colors.length > 1) this.buildChoice(bar);
      this.button(bar, "+", "zoom in", () => this.zoom(1.6));
      this.button(bar, "\u2212", "zoom out", () => this.zoom(1 / 1.6));
      this.button(bar, "\u21ba", "show all", () => this.reset());
    }

    buildChoice(bar) {
      const choice = make("select", bar);
      choice.setAttribute("aria-label", "color shows");
      this.colors.forEach((c, i) => { make("option", choice, "", "color: " + c.name).value = String(i); });
      choice.addEventListener("change", () => { this.shown = Number(choice.value); this.paintLegend(); this.draw(); });
    }

    button(bar, sign, label, act) {
      const button = make("button", bar, "kz-map-button", sign);
      button.type = "button";
      button.title = label;
      button.setAttribute("aria-label", label);
      button.addEventListener("click", act);
    }

    buildLegend(stage) {
      this.shown = 0;
      this.legend = make("div", stage, "kz-map-legend");
      this.legend.hidden = !this.colors.length && !this.groups;
      if (this.groups) this.groups.names.forEach((name, i) => this.buildGroup(name, i));
    }

    buildGroup(name, i) {
      const button = make("button", this.legend, "kz-map-group");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      make("i", button).style.background = GROUPS[i % GROUPS.length];
      make("span", button, "", name);
      button.addEventListener("click", () => {
        const hide = !this.hiddenGroups.has(i);
        if (hide) this.hiddenGroups.add(i); else this.hiddenGroups.delete(i);
        button.setAttribute("aria-pressed", String(!hide));
        this.draw();
      });
    }

    paintLegend() {
      const color = this.colors[this.shown];
      if (this.groups || !color) return;
      this.legend.replaceChildren();
      make("div", this.legend, "", color.name);
      const ramp = make("canvas", this.legend, "kz-map-ramp");
      ramp.width = 256;
      ramp.height = 1;
      const pen = ramp.getContext("2d");
      this.ramp.forEach((c, i) => { pen.fillStyle = "rgb(" + c.join(",") + ")"; pen.fillRect(i, 0, 1, 1); });
      const ends = make("div", this.legend, "kz-map-ends");
      make("span", ends, "", short(color.low));
      make("span", ends, "", short(color.high));
    }

    theme() {
      const style = getComputedStyle(this.stage);
      this.back = style.backgroundColor;
      this.ink = style.color;
      this.accent = style.getPropertyValue("--map-accent").trim() || "#c2410c";
      this.isDark = luminance(this.back) < 110;
      this.ramp = shades(RAMPS[this.isDark ? "dark" : "light"]);
      this.paintLegend();
    }

    // ---- where the points are ---------------------------------------------------------------------------

    resize() {
      const box = this.stage.getBoundingClientRect();
      if (!box.width || !box.height) return;
      this.dpr = Math.min(window.devicePixelRatio || 1, 2);
      const width = Math.round(box.width * this.dpr), height = Math.round(box.height * this.dpr);
      if (width === this.width && height === this.height) return;
      const before = this.width;
      this.width = width;
      this.height = height;
      [this.base, this.over].forEach((c) => { c.width = width; c.height = height; });
      this.image = this.base.getContext("2d").createImageData(width, height);
      if (!before || !this.isMoved) this.reset();
      else { this.scale *= width / before; this.draw(); }
    }

    /** Turn (3-D) or copy (2-D) point i to the plane; 3-D turns about the middle of the data. */
    turned(x, y, z) {
      if (!this.z) return [x, y];
      const m = this.middle, { yaw, pitch } = this.turn;
      const a = x - m[0], b = y - m[1], c = z - m[2];
      const right = a * Math.cos(yaw) + c * Math.sin(yaw), deep = -a * Math.sin(yaw) + c * Math.cos(yaw);
      return [right, b * Math.cos(pitch) - deep * Math.sin(pitch)];
    }

    reset() {
      this.isMoved = false;
      const data = this.data, mid = (c) => (c ? (c.low + c.high) / 2 : 0);
      this.middle = [mid(data.x), mid(data.y), mid(data.z)];
      const [u0, u1, v0, v1] = this.z ? this.turnedSpan() : [data.x.low, data.x.high, data.y.low, data.y.high];
      const roomTop = 56 * this.dpr, edge = 26 * this.dpr;
      this.scale = Math.min((this.width - 2 * edge) / (u1 - u0 || 1), (this.height - roomTop - edge) / (v1 - v0 || 1));
      this.least = this.scale * 0.5;
      this.most = this.scale * MOST_ZOOM;
      this.center = { u: (u0 + u1) / 2, v: (v0 + v1) / 2 + (roomTop - edge) / 2 / this.scale };
      this.draw();
    }

    /** Least and greatest u and v of all points as they are turned now. */
    turnedSpan() {
      const span = [Infinity, -Infinity, Infinity, -Infinity];
      for (let i = 0; i < this.count; i++) {
        const [u, v] = this.turned(this.x[i], this.y[i], this.z[i]);
        span[0] = Math.min(span[0], u);
        span[1] = Math.max(span[1], u);
        span[2] = Math.min(span[2], v);
        span[3] = Math.max(span[3], v);
      }
      return span;
    }

    zoom(factor, px, py) {
      const x = px === undefined ? this.width / 2 : px, y = py === undefined ? this.height / 2 : py;
      const next = Math.min(this.most, Math.max(this.least, this.scale * factor));
      this.center.u += (x - this.width / 2) * (1 / this.scale - 1 / next);
      this.center.v -= (y - this.height / 2) * (1 / this.scale - 1 / next);
      this.scale = next;
      this.soon();
    }

    pan(dx, dy) {
      this.center.u -= dx / this.scale;
      this.center.v += dy / this.scale;
      this.soon();
    }

    rotate(dx, dy) {
      this.turn.yaw += dx / (220 * this.dpr);
      this.turn.pitch = Math.max(-1.5, Math.min(1.5, this.turn.pitch + dy / (220 * this.dpr)));
      this.soon();
    }

    soon() {
      this.isMoved = true;
      if (this.waiting) return;
      this.waiting = true;
      requestAnimationFrame(() => { this.waiting = false; this.draw(); });
    }

    place() {
      const { x, y, z, sx, sy, count, scale } = this;
      const left = this.width / 2 - this.center.u * scale, top = this.height / 2 + this.center.v * scale;
      if (!z) {
        for (let i = 0; i < count; i++) { sx[i] = left + x[i] * scale; sy[i] = top - y[i] * scale; }
      } else {
        const [m0, m1, m2] = this.middle, cy = Math.cos(this.turn.yaw), sn = Math.sin(this.turn.yaw);
        const cp = Math.cos(this.turn.pitch), sp = Math.sin(this.turn.pitch);
        for (let i = 0; i < count; i++) {
          const a = x[i] - m0, c = z[i] - m2;
          sx[i] = left + (a * cy + c * sn) * scale;
          sy[i] = top - ((y[i] - m1) * cp - (c * cy - a * sn) * sp) * scale;
        }
      }
      if (this.hiddenGroups.size) {
        for (let i = 0; i < count; i++) if (this.hiddenGroups.has(this.groups.of[i])) sx[i] = -1e6;
      }
    }

    // ---- drawing ------------------------------------------------------------------------------------------

    draw() {
      if (!this.width) return;
      const began = performance.now();
      this.place();
      const seen = [];
      const { sx, sy, width, height } = this;
      for (let i = 0; i < this.count; i++) if (sx[i] > -9 && sy[i] > -9 && sx[i] < width + 9 && sy[i] < height + 9) seen.push(i);
      this.seen = seen;
      const roomy = Math.sqrt((width * height) / (seen.length + 1)) / this.dpr;
      this.radius = Math.min(4.5, Math.max(1.05, roomy * 0.12)) * this.dpr;
      this.paint(seen, roomy);
      this.decorate();
      this.showTip(this.hovered >= 0 ? this.hovered : this.chosen);
      this.root.dataset.redraw = (performance.now() - began).toFixed(1);
    }

    paint(seen, roomy) {
      const pixels = this.image.data, { sx, sy, width, height } = this;
      pixels.fill(0);
      const { reach, dx, dy, cover } = brush(this.radius), steps = cover.length;
      const offsets = Int32Array.from(dx, (x, s) => 4 * (dy[s] * width + x));
      const alpha = roomy < 6 ? 0.62 : 0.85, tints = this.tints();
      for (let n = seen.length - 1; n >= 0; n--) {      // the first rows are painted last: they are the frequent ones
        const i = seen[n], px = Math.round(sx[i]), py = Math.round(sy[i]);
        if (px < reach || py < reach || px >= width - reach || py >= height - reach) continue;
        const start = 4 * (py * width + px), r = tints[3 * i], g = tints[3 * i + 1], b = tints[3 * i + 2];
        for (let s = 0; s < steps; s++) {
          const at = start + offsets[s], a = alpha * cover[s], under = (pixels[at + 3] / 255) * (1 - a), whole = a + under;
          pixels[at] = (r * a + pixels[at] * under) / whole;
          pixels[at + 1] = (g * a + pixels[at + 1] * under) / whole;
          pixels[at + 2] = (b * a + pixels[at + 2] * under) / whole;
          pixels[at + 3] = whole * 255;
        }
      }
      this.base.getContext("2d").putImageData(this.image, 0, 0);
    }

    /** Red, green and blue of every point, made anew when the colors shown or the theme change. */
    tints() {
      const wanted = this.shown + (this.isDark ? " dark" : " light");
      if (this.tinted === wanted) return this.tint;
      const color = this.painter(), tint = new Uint8Array(3 * this.count);
      for (let i = 0; i < this.count; i++) tint.set(color(i), 3 * i);
      this.tinted = wanted;
      this.tint = tint;
      return tint;
    }

    /** A function from point to [r, g, b]. */
    painter() {
      const grey = this.isDark ? [140, 146, 158] : [128, 132, 142];
      if (this.groups) {
        const palette = GROUPS.map(rgb), of = this.groups.of;
        return (i) => palette[of[i] % palette.length];
      }
      const shown = this.colors[this.shown];
      if (!shown) return () => (this.isDark ? [106, 160, 232] : [44, 98, 170]);
      const { values, low, high } = shown, k = 255 / (high - low || 1), ramp = this.ramp;
      return (i) => (Number.isNaN(values[i]) ? grey : ramp[Math.max(0, Math.min(255, Math.round((values[i] - low) * k)))]);
    }

    /** Rings, names and labels, on the canvas above the points. */
    decorate() {
      const pen = this.over.getContext("2d");
      pen.clearRect(0, 0, this.width, this.height);
      pen.lineJoin = "round";
      this.taken = [];
      this.data.named.forEach((name) => this.nameOne(pen, name));
      this.found.slice(0, 400).forEach((i) => this.ring(pen, i, this.radius + 3 * this.dpr, 1.4));
      if (this.chosen >= 0) this.markChosen(pen);
      if (this.hovered >= 0) this.ring(pen, this.hovered, this.radius + 3.5 * this.dpr, 2);
      if (this.scale > (this.most / MOST_ZOOM) * 5 || this.count <= 400) this.labelSome(pen);
    }

    markChosen(pen) {
      this.ring(pen, this.chosen, this.radius + 5 * this.dpr, 2.4);
      if (this.data.named.some((name) => name.index === this.chosen)) return;
      this.write(pen, this.labels[this.chosen], this.sx[this.chosen], this.sy[this.chosen], true, true);
    }

    ring(pen, i, radius, thick) {
      pen.strokeStyle = this.accent;
      pen.lineWidth = thick * this.dpr;
      pen.beginPath();
      pen.arc(this.sx[i], this.sy[i], radius, 0, 2 * Math.PI);
      pen.stroke();
    }

    nameOne(pen, name) {
      let at = [0, 0];
      if (name.index !== undefined) at = [this.sx[name.index], this.sy[name.index]];
      else {
        const [u, v] = this.turned(name.x, name.y, name.z || 0);
        at = [this.width / 2 + (u - this.center.u) * this.scale, this.height / 2 - (v - this.center.v) * this.scale];
      }
      pen.fillStyle = this.accent;
      pen.strokeStyle = this.back;
      pen.lineWidth = 2 * this.dpr;
      pen.beginPath();
      pen.arc(at[0], at[1], Math.max(this.radius, 3.2 * this.dpr), 0, 2 * Math.PI);
      pen.stroke();
      pen.fill();
      this.write(pen, name.label, at[0], at[1], true, false);
    }

    labelSome(pen) {
      let written = 0;
      for (let n = 0; n < Math.min(this.seen.length, 1500) && written < 90; n++) {
        const i = this.seen[n];
        if (this.write(pen, this.labels[i], this.sx[i], this.sy[i], false, false)) written++;
      }
    }

    /** Write a label beside a point unless it would cover another; `force` writes it all the same. */
    write(pen, text, x, y, strong, force) {
      const size = (strong ? 13 : 11.5) * this.dpr;
      pen.font = (strong ? "600 " : "") + size + "px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace";
      const shown = text.length > 26 ? text.slice(0, 25) + "\u2026" : text;
      const wide = pen.measureText(shown).width, gap = this.radius + 4 * this.dpr;
      const spots = [[gap, 0], [-gap - wide, 0], [-wide / 2, -gap - size * 0.4], [-wide / 2, gap + size * 0.6]];
      for (const [dx, dy] of strong ? spots : spots.slice(0, 1)) {
        const box = [x + dx - 2, y + dy - size * 0.62, x + dx + wide + 2, y + dy + size * 0.62];
        const isInside = box[0] > 0 && box[2] < this.width && box[1] > 0 && box[3] < this.height;
        const isFree = this.taken.every((t) => box[0] > t[2] || box[2] < t[0] || box[1] > t[3] || box[3] < t[1]);
        if (!force && !(isInside && isFree)) continue;
        this.taken.push(box);
        pen.textBaseline = "middle";
        pen.strokeStyle = this.back;
        pen.lineWidth = (strong ? 4 : 3) * this.dpr;
        pen.strokeText(shown, x + dx, y + dy);
        pen.fillStyle = this.ink;
        pen.globalAlpha = strong ? 1 : 0.86;
        pen.fillText(shown, x + dx, y + dy);
        pen.globalAlpha = 1;
        return true;
      }
      return false;
    }
  }

  Object.assign(PointMap.prototype, window.kobzaHands);

  /** Start every map below `within` that has not started; called again after HTML was put in by script. */
  window.kobzaMaps = function (within) {
    (within || document).querySelectorAll(".kz-map:not([data-ready])").forEach((root) => {
      root.dataset.ready = "starting";
      root.kobzaMap = new PointMap(root);
    });
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", () => window.kobzaMaps());
  else window.kobzaMaps();
})();
