/* Parts of the map: what a person does with it (pointer, wheel, keys, search). The methods join PointMap in map.js. */
(function () {
  "use strict";
  const { HOVER_REACH, MOST_ZOOM, make, short } = window.kobzaPoints;

  window.kobzaHands = {
    // ---- what a person does --------------------------------------------------------------------------------

    listen() {
      const over = this.over;
      over.addEventListener("wheel", (e) => {
        e.preventDefault();
        const [x, y] = this.at(e);
        this.zoom(Math.exp(-Math.max(-240, Math.min(240, e.deltaY * (e.deltaMode === 1 ? 16 : 1))) * 0.0022), x, y);
      }, { passive: false });
      this.fingers = new Map();
      over.addEventListener("pointerdown", (e) => this.press(e));
      over.addEventListener("pointermove", (e) => this.move(e));
      ["pointerup", "pointercancel"].forEach((kind) => over.addEventListener(kind, (e) => this.release(e)));
      over.addEventListener("pointerleave", () => this.hover(-1));
      over.addEventListener("dblclick", (e) => { const [x, y] = this.at(e); this.zoom(2.2, x, y); });
      over.addEventListener("keydown", (e) => this.key(e));
      this.input.addEventListener("input", () => this.search(this.input.value));
      this.input.addEventListener("keydown", (e) => this.searchKey(e));
      this.input.addEventListener("blur", () => setTimeout(() => this.showHits(false), 150));
      this.hits.addEventListener("pointerdown", (e) => {
        const row = e.target.closest("li[data-index]");
        if (row) { e.preventDefault(); this.choose(Number(row.dataset.index)); this.showHits(false); }
      });
      new ResizeObserver(() => this.resize()).observe(this.stage);
      const again = () => { this.theme(); this.draw(); };
      window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
      new MutationObserver(again).observe(document.documentElement, { attributes: true, attributeFilter: ["class", "data-theme", "style"] });
    },

    at(e) {
      const box = this.over.getBoundingClientRect();
      return [(e.clientX - box.left) * this.dpr, (e.clientY - box.top) * this.dpr];
    },

    press(e) {
      this.over.setPointerCapture(e.pointerId);
      this.fingers.set(e.pointerId, this.at(e));
      this.travelled = 0;
    },

    move(e) {
      const [x, y] = this.at(e), last = this.fingers.get(e.pointerId);
      if (!last) { this.hover(this.nearest(x, y)); return; }
      const dx = x - last[0], dy = y - last[1];
      this.fingers.set(e.pointerId, [x, y]);
      this.travelled += Math.abs(dx) + Math.abs(dy);
      if (this.travelled < 4 * this.dpr) return;
      this.over.classList.add("kz-dragging");
      this.hover(-1);
      if (this.fingers.size === 2) this.pinch(e.pointerId, last);
      else if (this.z && !e.shiftKey) this.rotate(dx, dy);
      else this.pan(dx, dy);
    },

    pinch(moved, before) {
      const [id] = [...this.fingers.keys()].filter((k) => k !== moved), other = this.fingers.get(id), now = this.fingers.get(moved);
      const was = Math.hypot(before[0] - other[0], before[1] - other[1]), is = Math.hypot(now[0] - other[0], now[1] - other[1]);
      if (was > 0 && is > 0) this.zoom(is / was, (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    },

    release(e) {
      if (this.fingers.delete(e.pointerId) && this.travelled < 4 * this.dpr && e.type === "pointerup") {
        const [x, y] = this.at(e);
        this.choose(this.nearest(x, y), true);
      }
      this.over.classList.remove("kz-dragging");
    },

    nearest(x, y) {
      const { sx, sy } = this;
      let best = -1, least = (HOVER_REACH * this.dpr) ** 2;
      for (const i of this.seen || []) {
        const d = (sx[i] - x) ** 2 + (sy[i] - y) ** 2;
        if (d < least) { least = d; best = i; }
      }
      return best;
    },

    hover(i) {
      if (i === this.hovered) return;
      this.hovered = i;
      this.decorate();
      this.showTip(i >= 0 ? i : this.chosen);
    },

    showTip(i) {
      const isSeen = i >= 0 && this.sx[i] >= 0 && this.sy[i] >= 0 && this.sx[i] <= this.width && this.sy[i] <= this.height;
      this.tip.hidden = !isSeen;
      if (!isSeen) return;
      this.tip.replaceChildren();
      make("div", this.tip, "kz-map-token", this.labels[i]);
      make("div", this.tip, "kz-map-number", this.facts(i));
      const x = this.sx[i] / this.dpr, y = this.sy[i] / this.dpr, box = this.stage.getBoundingClientRect();
      const wide = this.tip.offsetWidth, tall = this.tip.offsetHeight;
      this.tip.style.left = (x + 14 + wide > box.width ? Math.max(4, x - 14 - wide) : x + 14) + "px";
      this.tip.style.top = Math.max(4, Math.min(box.height - tall - 4, y - tall / 2)) + "px";
    },

    facts(i) {
      const parts = [this.data.row + " " + (this.data.ids ? this.data.ids[i] : this.data.first + i)];
      if (this.groups) parts.push(this.groups.names[this.groups.of[i]]);
      this.colors.forEach((c) => { if (c.name !== this.data.row) parts.push(c.name + " " + short(c.values[i])); });
      return parts.join(" \u00b7 ");
    },

    choose(i, stay) {
      this.chosen = i;
      if (i >= 0) {
        if (!stay) this.show(i);
        this.live.textContent = this.labels[i] + ", " + this.facts(i);
        const detail = { index: i, id: this.data.ids ? this.data.ids[i] : this.data.first + i, label: this.labels[i] };
        this.root.dispatchEvent(new CustomEvent("kobza:pick", { bubbles: true, detail }));
      }
      this.draw();
    },

    /** Bring point i to the middle, near enough to read its neighbors. */
    show(i) {
      this.isMoved = true;
      const [u, v] = this.turned(this.x[i], this.y[i], this.z ? this.z[i] : 0);
      this.scale = Math.max(this.scale, this.most / MOST_ZOOM * 8);
      this.center = { u, v };
    },

    key(e) {
      const step = 60 * this.dpr;
      const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
      if (moves[e.key]) {
        const [dx, dy] = moves[e.key];
        if (this.z && !e.shiftKey) this.rotate(-dx, -dy); else this.pan(dx, dy);
      } else if (e.key === "+" || e.key === "=") this.zoom(1.4);
      else if (e.key === "-") this.zoom(1 / 1.4);
      else if (e.key === "0" || e.key === "Home") this.reset();
      else if (e.key === "/") this.input.focus();
      else if (e.key === "Enter" || e.key === " ") this.choose(this.nearestToMiddle(), true);
      else if (e.key === "n" || e.key === "p") this.step(e.key === "n" ? 1 : -1);
      else if (e.key === "Escape") { this.found = []; this.choose(-1); }
      else return;
      e.preventDefault();
    },

    nearestToMiddle() {
      let best = -1, least = Infinity;
      for (const i of this.seen) {
        const d = (this.sx[i] - this.width / 2) ** 2 + (this.sy[i] - this.height / 2) ** 2;
        if (d < least) { least = d; best = i; }
      }
      return best;
    },

    step(by) {
      const list = this.found.length ? this.found : this.seen;
      if (list.length) this.choose(list[(list.indexOf(this.chosen) + by + list.length) % list.length], !this.found.length);
    },

    // ---- finding a label --------------------------------------------------------------------------------------

    search(text) {
      const wanted = text.toLowerCase();
      this.found = [];
      if (wanted) {
        if (!this.folded) this.folded = this.labels.map((l) => l.toLowerCase());
        const bare = (l) => l.replace(/^[\s\u2581]/, "");
        const rank = (i) => (this.labels[i] === text ? 0 : bare(this.labels[i]) === bare(text) ? 1 : bare(this.folded[i]) === bare(wanted) ? 2 : bare(this.folded[i]).startsWith(wanted) ? 3 : 4);
        const plain = wanted.replace(/^\s/, "\u2581");
        for (let i = 0; i < this.count; i++) if (this.folded[i].includes(wanted) || this.folded[i].includes(plain)) this.found.push(i);
        const ranks = new Map(this.found.map((i) => [i, rank(i)]));
        this.found.sort((a, b) => ranks.get(a) - ranks.get(b) || a - b);
      }
      this.at_hit = -1;
      this.listHits(wanted);
      this.decorate();
    },

    listHits(wanted) {
      this.hits.replaceChildren();
      this.found.slice(0, 12).forEach((i, n) => {
        const row = make("li", this.hits);
        row.id = this.hits.id + "-" + n;
        row.dataset.index = String(i);
        row.setAttribute("role", "option");
        make("span", row, "kz-map-token", this.labels[i]);
        make("span", row, "kz-map-number", String(this.data.ids ? this.data.ids[i] : this.data.first + i));
      });
      const rest = this.found.length - 12;
      if (rest > 0) make("li", this.hits, "kz-none", rest.toLocaleString("en-US") + " more (all ringed)");
      if (!this.found.length) make("li", this.hits, "kz-none", "no label contains this");
      this.showHits(Boolean(wanted));
      this.live.textContent = wanted ? this.found.length + " found" : "";
    },

    showHits(isOpen) {
      this.hits.hidden = !isOpen;
      this.input.setAttribute("aria-expanded", String(isOpen));
      if (!isOpen) this.input.removeAttribute("aria-activedescendant");
    },

    searchKey(e) {
      const most = Math.min(12, this.found.length);
      if ((e.key === "ArrowDown" || e.key === "ArrowUp") && most) {
        e.preventDefault();
        this.at_hit = (this.at_hit + (e.key === "ArrowDown" ? 1 : most - (this.at_hit < 0 ? 0 : 1))) % most;
        [...this.hits.children].forEach((row, n) => row.setAttribute("aria-selected", String(n === this.at_hit)));
        this.input.setAttribute("aria-activedescendant", this.hits.id + "-" + this.at_hit);
      } else if (e.key === "Enter" && most) {
        e.preventDefault();
        this.choose(this.found[Math.max(0, this.at_hit)]);
        this.showHits(false);
      } else if (e.key === "Escape") {
        this.input.value = "";
        this.search("");
        this.over.focus();
      }
    },
  };
})();
