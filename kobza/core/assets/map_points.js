/* Parts of the map: numbers out of base64, colors, brushes, small DOM help. Used by map_hands.js and map.js. */
(function () {
  "use strict";

  // Ends are cut so that no color vanishes into its background; light: dark violet -> ochre, dark: blue -> yellow.
  const RAMPS = {
    light: ["#3b0f70", "#3f3d9e", "#31688e", "#1f8a84", "#35a15a", "#83a91f", "#d09a06"],
    dark: ["#5a4fcf", "#3f7fd4", "#28a3b8", "#35bf8a", "#7ad151", "#c8de3a", "#fde725"],
  };
  const GROUPS = ["#3b82c4", "#e07b28", "#2e9e6b", "#cc4b7a", "#8a63c9", "#a8862b", "#2aa5b0", "#d2553d", "#7b8794"];
  const NOTHING = 65535;          // the code of "no value" in a color channel
  const MOST_ZOOM = 250;
  const HOVER_REACH = 14;         // CSS pixels from the pointer to the nearest point

  /** Little-endian uint16 numbers out of base64 text. */
  function decode(text) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    const view = new DataView(bytes.buffer), out = new Uint16Array(raw.length >> 1);
    for (let i = 0; i < out.length; i++) out[i] = view.getUint16(2 * i, true);
    return out;
  }

  /** {low, high, codes} -> the numbers themselves; a missing value becomes NaN. */
  function numbers(channel) {
    const codes = decode(channel.codes), out = new Float32Array(codes.length);
    const step = (channel.high - channel.low) / (NOTHING - 1);
    for (let i = 0; i < codes.length; i++) out[i] = codes[i] === NOTHING ? NaN : channel.low + step * codes[i];
    return out;
  }

  function rgb(hex) {
    const n = parseInt(hex.slice(1), 16);
    return [n >> 16, (n >> 8) & 255, n & 255];
  }

  /** 256 colors, linear between the stops of a ramp. */
  function shades(stops) {
    const colors = stops.map(rgb), out = [];
    for (let i = 0; i < 256; i++) {
      const place = (i / 255) * (colors.length - 1), at = Math.min(Math.floor(place), colors.length - 2);
      out.push(colors[at].map((c, j) => Math.round(c + (place - at) * (colors[at + 1][j] - c))));
    }
    return out;
  }

  function short(value) {
    if (!Number.isFinite(value)) return "none";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e9) return value.toLocaleString("en-US");
    return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(+value.toPrecision(4));
  }

  function make(tag, parent, name, text) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    if (parent) parent.appendChild(element);
    return element;
  }

  /** A round brush with soft edge: the pixels it touches as offsets (dx, dy) and how much it covers of each. */
  function brush(radius) {
    const reach = Math.ceil(radius + 0.5), dx = [], dy = [], cover = [];
    for (let y = -reach; y <= reach; y++) {
      for (let x = -reach; x <= reach; x++) {
        const part = Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(x, y)));
        if (part > 0.02) { dx.push(x); dy.push(y); cover.push(part); }
      }
    }
    return { reach, dx, dy, cover: Float32Array.from(cover) };
  }

  function luminance(color) {
    const part = (color.match(/[\d.]+/g) || [255, 255, 255]).map(Number);
    return 0.3 * part[0] + 0.59 * part[1] + 0.11 * part[2];
  }

  window.kobzaPoints = { GROUPS, HOVER_REACH, MOST_ZOOM, RAMPS, brush, decode, luminance, make, numbers, rgb, shades, short };
})();
