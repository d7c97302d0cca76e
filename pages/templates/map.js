"use strict";
// The map page: unpack the columns, draw the chosen layer, and describe the place under the cross-hair.
{
  const data = JSON.parse(document.getElementById("data")?.textContent ?? "null");
  if (data) unpacked(data).then(explore, (error) => {
    document.getElementById("reading").textContent = `The map cannot be shown by this browser: ${error.message}`;
  });

  function bytesOf(base64) {
    return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  }

  /** Columns by name: arrays of one, two or four bytes a number out of the packed bytes. */
  async function unpacked(data) {
    const stream = new Blob([bytesOf(data.packed)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    const kinds = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array };
    const columns = {};
    for (const c of data.columns) {
      const raw = new kinds[c.bytes](buffer, c.start, c.length);
      const none = 2 ** (8 * c.bytes) - 1;
      columns[c.name] = { raw, at: (i) => (raw[i] === none ? null : c.offset + c.scale * raw[i]), low: c.offset, high: c.high };
    }
    return { ...data, columns };
  }

  // --- colours ------------------------------------------------------------------------------

  const VIRIDIS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37]];
  const GREY = [[0, 0, 0], [255, 255, 255]];
  const PAPER = [255, 255, 255];
  const NEUTRAL = [187, 187, 187];

  function between(scale, t) {
    const x = Math.min(Math.max(t, 0), 1) * (scale.length - 1);
    const i = Math.min(Math.floor(x), scale.length - 2);
    return scale[i].map((v, k) => Math.round(v + (x - i) * (scale[i + 1][k] - v)));
  }

  function rgb(hex) {
    return [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
  }

  function explore(data) {
    const [ny, nx] = data.shape;
    const columns = data.columns;
    const phaseColour = data.phases.map((phase) => rgb(phase.colour));
    const phase = columns.phase.raw;
    const NONE = 255;
    const scales = {
      correlation: { scale: GREY, low: 0.2, high: 1, unit: "correlation coefficient" },
      score: { scale: VIRIDIS, low: 0, high: columns.score.high, unit: "nats" },
      phase_margin: { scale: VIRIDIS, low: 0, high: columns.phase_margin.high, unit: "nats to the next phase" },
      orientation_margin: { scale: VIRIDIS, low: 0, high: columns.orientation_margin.high, unit: "nats to the next orientation" },
    };

    function colourOf(layer, i) {
      if (layer === "phase") return phase[i] === NONE ? PAPER : phaseColour[phase[i]];
      if (layer === "orientation") return [0, 1, 2].map((k) => columns.ipf.raw[3 * i + k]);
      if (layer === "second") {
        const second = columns.second_phase.raw[i];
        const share = Math.min(2 * (columns.second_share.at(i) ?? 0), 1);
        return second === NONE ? PAPER : phaseColour[second].map((v) => Math.round(255 + (0.3 + 0.7 * share) * (v - 255)));
      }
      const { scale, low, high } = scales[layer];
      const value = layer === "correlation" || phase[i] !== NONE ? columns[layer].at(i) : null;
      return value === null ? NEUTRAL : between(scale, (value - low) / (high - low));
    }

    // --- the map ----------------------------------------------------------------------------

    const canvas = document.getElementById("map");
    const zoom = Math.max(1, Math.floor(960 / Math.max(nx, ny)));
    const wide = Math.max(zoom, Math.ceil(48 / nx)); // px of a pattern; a scan of one line is drawn as a band
    const high = Math.max(zoom, Math.ceil(48 / ny));
    canvas.width = nx * wide;
    canvas.height = ny * high;
    const base = document.createElement("canvas");
    base.width = canvas.width;
    base.height = canvas.height;

    function drawBase(layer) {
      const small = document.createElement("canvas");
      small.width = nx;
      small.height = ny;
      const image = new ImageData(nx, ny);
      for (let i = 0; i < nx * ny; i++) image.data.set([...colourOf(layer, i), 255], 4 * i);
      small.getContext("2d").putImageData(image, 0, 0);
      const pen = base.getContext("2d");
      pen.imageSmoothingEnabled = false;
      pen.drawImage(small, 0, 0, base.width, base.height);
      if (layer === "phase") drawUndecided(pen);
      drawBoundaries(pen);
      drawScaleBar(pen, base.width, base.height, data.step_nm / wide, "nm");
    }

    function drawUndecided(pen) {
      pen.strokeStyle = "#000";
      pen.lineWidth = Math.max(1, zoom / 12);
      pen.beginPath();
      for (let i = 0; i < nx * ny; i++) {
        if (phase[i] === NONE || columns.decided.raw[i]) continue;
        const [x, y] = [(i % nx) * wide, Math.floor(i / nx) * high];
        for (const shift of zoom > 8 ? [-0.5, 0, 0.5] : [0]) {
          pen.moveTo(x + Math.max(shift, 0) * wide, y + (1 + Math.min(shift, 0)) * high);
          pen.lineTo(x + (1 + Math.min(shift, 0)) * wide, y + Math.max(shift, 0) * high);
        }
      }
      pen.stroke();
    }

    /** Bits of an edge: 1 to the right, 4 below; 2 and 8 where only the phase changes there. */
    function drawBoundaries(pen) {
      const edges = columns.edges.raw;
      pen.strokeStyle = "#000";
      pen.lineWidth = Math.max(1, zoom / 9);
      for (const [right, below, dashes] of [[1, 4, []], [2, 8, [zoom / 5, zoom / 5]]]) {
        pen.setLineDash(dashes);
        pen.beginPath();
        for (let i = 0; i < nx * ny; i++) {
          const [x, y] = [((i % nx) + 1) * wide, (Math.floor(i / nx) + 1) * high];
          if (edges[i] & right) pen.moveTo(x, y - high), pen.lineTo(x, y);
          if (edges[i] & below) pen.moveTo(x - wide, y), pen.lineTo(x, y);
        }
        pen.stroke();
      }
      pen.setLineDash([]);
    }

    /** A bar of a round length, at most a quarter of the width, on a light ground in the lower left. */
    function drawScaleBar(pen, width, height, perPixel, unit) {
      const most = (width / 4) * perPixel;
      const power = 10 ** Math.floor(Math.log10(most));
      const length = [5, 2, 1].find((k) => k * power <= most) * power;
      const size = Math.max(11, Math.round(width / 32));
      const text = `${Number(length.toPrecision(2))} ${unit}`;
      pen.font = `${size}px system-ui, sans-serif`;
      const long = length / perPixel;
      const box = [size * 0.6, height - size * 2.5, Math.max(long, pen.measureText(text).width) + size * 0.9, size * 2];
      pen.fillStyle = "rgba(255, 255, 255, 0.85)";
      pen.fillRect(...box);
      pen.fillStyle = "#000";
      pen.fillRect(box[0] + size * 0.45, box[1] + size * 0.35, long, size * 0.25);
      pen.fillText(text, box[0] + size * 0.45, box[1] + size * 1.65);
    }

    function drawCross(pen, i, colour, dashes) {
      const [x, y] = [((i % nx) + 0.5) * wide, (Math.floor(i / nx) + 0.5) * high];
      const reach = Math.max(28, wide);
      for (const [style, width] of [["#fff", 7], [colour, 3]]) {
        pen.strokeStyle = style;
        pen.lineWidth = width;
        pen.setLineDash(dashes);
        pen.beginPath();
        pen.rect(x - wide / 2 - 1, y - high / 2 - 1, wide + 2, high + 2);
        for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
          pen.moveTo(x + dx * (wide / 2 + 3), y + dy * (high / 2 + 3));
          pen.lineTo(x + dx * (wide / 2 + reach), y + dy * (high / 2 + reach));
        }
        pen.stroke();
      }
      pen.setLineDash([]);
    }

    // --- legend -----------------------------------------------------------------------------

    const legend = document.getElementById("legend");

    function element(name, text, ...children) {
      const made = document.createElement(name);
      if (text) made.textContent = text;
      made.append(...children);
      return made;
    }

    function swatch(colour, text, kind = "") {
      const box = element("span");
      box.className = `swatch ${kind}`;
      if (colour) box.style.background = `rgb(${colour.join(",")})`;
      return element("li", "", box, document.createTextNode(text));
    }

    function drawLegend(layer) {
      const list = element("ul");
      if (layer === "phase" || layer === "second") {
        data.phases.forEach((p, k) => list.append(swatch(phaseColour[k], layer === "phase" ? `${p.name} ${p.share}` : p.name)));
        list.append(swatch(PAPER, layer === "phase" ? `not indexed ${data.not_indexed}` : "no second phase (paler: a smaller share)"));
        if (layer === "phase") list.append(swatch(PAPER, "undecided (hatched)", "hatched"));
      } else if (layer === "orientation") {
        for (const p of data.phases) {
          const corners = p.key.map((k) => swatch(rgb(k.colour), k.direction));
          list.append(element("li", "", document.createTextNode(p.name), element("ul", "", ...corners)));
        }
        list.append(swatch(PAPER, "not indexed"));
      } else {
        const { scale, low, high, unit } = scales[layer];
        const bar = element("span");
        bar.className = "bar";
        bar.style.background = `linear-gradient(90deg, ${scale.map((c) => `rgb(${c.join(",")})`).join(",")})`;
        const top = columns[layer].beyond ? "≥ " : "";
        list.append(element("li", "", document.createTextNode(`${round(low)} `), bar, document.createTextNode(` ${top}${round(high)} ${unit}`)));
        if (layer !== "correlation") list.append(swatch(NEUTRAL, "not indexed"));
      }
      legend.replaceChildren(list);
    }

    // --- the place --------------------------------------------------------------------------

    let at = data.start;
    let pinned = data.start;
    const reading = document.getElementById("reading");

    function round(value, digits = 1) {
      return value === null ? "—" : Number(value.toFixed(digits)).toLocaleString("en");
    }

    function facts(i) {
      const [y, x] = [Math.floor(i / nx), i % nx];
      const place = ["Position", `x ${round(x * data.step_nm)} nm, y ${round(y * data.step_nm)} nm (column ${x * data.stride}, row ${y * data.stride})`];
      if (phase[i] === NONE) return [place, ["Phase", "not indexed"], ["Correlation", "—"]];
      const found = data.phases[phase[i]];
      const second = columns.second_phase.raw[i];
      const more = second === NONE ? [] : [["Second phase", `${data.phases[second].name}, ${round(100 * columns.second_share.at(i), 0)} %`]];
      const euler = [0, 1, 2].map((k) => round(columns.euler.at(3 * i + k)) + "°").join(", ");
      return [
        place,
        ["Phase", found.name + (columns.decided.raw[i] ? "" : " (undecided)")],
        ...more,
        ["Score", `${round(columns.score.at(i))} nats`],
        ["Phase margin", `${round(columns.phase_margin.at(i))} nats`],
        ["Orientation margin", `${round(columns.orientation_margin.at(i))} nats`],
        ["Correlation", round(columns.correlation.at(i), 2)],
        ["Zone axis", `${found.zones[columns.zone.raw[i]]}, ${round(columns.zone_off.at(i))}° off`],
        ["Euler angles", euler],
        ["Grain", round(columns.grain.at(i), 0)],
      ];
    }

    function describe() {
      const list = element("dl");
      for (const [name, value] of facts(at)) list.append(element("div", "", element("dt", name), element("dd", value)));
      reading.replaceChildren(list);
    }

    function draw() {
      const pen = canvas.getContext("2d");
      pen.drawImage(base, 0, 0);
      drawCross(pen, pinned, "#000", []);
      if (at !== pinned) drawCross(pen, at, "#c2185b", []);
    }

    // --- the pattern ------------------------------------------------------------------------

    const pattern = document.getElementById("pattern");
    const patternText = document.getElementById("pattern-text");
    const withSpots = document.getElementById("spots");
    const sprites = new Map();

    function sprite(k) {
      if (!sprites.has(k)) {
        const image = new Image();
        image.src = `data:image/webp;base64,${data.patterns.sprites[k]}`;
        sprites.set(k, image.decode().then(() => image));
      }
      return sprites.get(k);
    }

    /** Number among the kept patterns of the one nearest to a place, and its place. */
    function kept(i) {
      const { every, across, down } = data.patterns;
      const x = Math.min(Math.round(((i % nx) * data.stride) / every), across - 1);
      const y = Math.min(Math.round((Math.floor(i / nx) * data.stride) / every), down - 1);
      return { number: y * across + x, column: x * every, row: y * every };
    }

    async function drawPattern() {
      const { side, tiles, in_row: inRow, scale_invA_per_px: perPixel } = data.patterns;
      const { number, column, row } = kept(pinned);
      const wanted = pinned;
      const image = await sprite(Math.floor(number / tiles));
      if (wanted !== pinned) return;
      const tile = number % tiles;
      const [tall, across] = side;
      const enlarged = Math.max(1, Math.round(432 / across));
      pattern.width = across * enlarged;
      pattern.height = tall * enlarged;
      const pen = pattern.getContext("2d");
      pen.imageSmoothingEnabled = true;
      pen.filter = "none";
      pen.drawImage(image, (tile % inRow) * across, Math.floor(tile / inRow) * tall, across, tall, 0, 0, pattern.width, pattern.height);
      pen.globalCompositeOperation = "difference"; // white minus the pattern: spots are dark
      pen.fillStyle = "#fff";
      pen.fillRect(0, 0, pattern.width, pattern.height);
      pen.globalCompositeOperation = "source-over";
      if (withSpots.checked && data.patterns.spots) drawSpots(pen, number, row, column);
      drawScaleBar(pen, pattern.width, pattern.height, perPixel / enlarged, "Å⁻¹");
      const where = `column ${column}, row ${row}`;
      const near = row === Math.floor(wanted / nx) * data.stride && column === (wanted % nx) * data.stride ? "" : ", the nearest that is kept";
      patternText.textContent = `Pattern of ${where}${near}: square root of the counts, dark where there are many.`;
      pattern.setAttribute("aria-label", `Diffraction pattern of ${where}`);
    }

    function drawSpots(pen, number, row, column) {
      const per = data.patterns.spots;
      const raw = columns.spots.raw;
      const i = Math.floor(row / data.stride) * nx + Math.floor(column / data.stride);
      if (phase[i] === NONE) return;
      for (const [style, width] of [["#000", 3.5], [`rgb(${phaseColour[phase[i]].join(",")})`, 2]]) {
        pen.strokeStyle = style;
        pen.lineWidth = width;
        for (let k = 0; k < per; k++) {
          const [y, x] = [raw[2 * (number * per + k)], raw[2 * (number * per + k) + 1]];
          if (y === NONE) break;
          pen.beginPath();
          pen.arc((x / 254) * pattern.width, (y / 254) * pattern.height, pattern.width / 48, 0, 2 * Math.PI);
          pen.stroke();
        }
      }
    }

    // --- hands ------------------------------------------------------------------------------

    function moveTo(i) {
      at = i;
      describe();
      draw();
    }

    function pin() {
      pinned = at;
      draw();
      if (data.patterns) drawPattern();
    }

    function under(event) {
      const box = canvas.getBoundingClientRect();
      const inside = (v, n) => Math.min(Math.max(Math.floor(v * n), 0), n - 1);
      const x = inside((event.clientX - box.left) / box.width, nx);
      return inside((event.clientY - box.top) / box.height, ny) * nx + x;
    }

    canvas.addEventListener("pointermove", (event) => {
      const i = under(event);
      if (i !== at) moveTo(i);
    });
    canvas.addEventListener("pointerleave", () => moveTo(pinned));
    canvas.addEventListener("click", (event) => {
      moveTo(under(event));
      pin();
    });
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      if (event.key in steps) {
        const [dy, dx] = steps[event.key].map((s) => s * (event.shiftKey ? 10 : 1));
        const y = Math.min(Math.max(Math.floor(at / nx) + dy, 0), ny - 1);
        moveTo(y * nx + Math.min(Math.max((at % nx) + dx, 0), nx - 1));
      } else if (event.key === "Enter" || event.key === " ") {
        pin();
      } else if (event.key === "Escape") {
        moveTo(pinned);
      } else {
        return;
      }
      event.preventDefault();
    });
    for (const choice of document.querySelectorAll("input[name=layer]")) {
      choice.addEventListener("change", () => {
        drawBase(choice.value);
        drawLegend(choice.value);
        draw();
      });
    }
    withSpots.addEventListener("change", drawPattern);

    const chosen = document.querySelector("input[name=layer]:checked").value; // a browser may remember another one
    drawBase(chosen);
    drawLegend(chosen);
    describe();
    draw();
    if (data.patterns) {
      document.getElementById("spots-choice").hidden = !data.patterns.spots;
      drawPattern();
    } else {
      pattern.hidden = true;
    }
  }
}
