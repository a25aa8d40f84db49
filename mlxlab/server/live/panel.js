// The live view of a server, in a notebook and in a browser.
//
// It gets a snapshot and then changes, see mlxlab/server/live/view.py, and sends changes
// of settings, see change.py. It loads nothing and keeps nothing.

const TICK_MS = 250;
const SILENT_MS = 30000; // a kernel that is there says so more often
const SPOKEN_MS = 5000; // between two totals that a screen reader hears
const LETTER = 6; // pixels of a letter in a strip, about
const [MIB, GIB] = [2 ** 20, 2 ** 30];
const PARTS = ["queue", "restore", "prefill", "decode"];

const count = (n) => n.toLocaleString("en-US");
const percent = (part, whole) => {
  const share = whole ? (100 * part) / whole : 0;
  // 99.96 % is not all, and 0.04 % is not nothing.
  return `${share > 99 && share < 100 ? Math.floor(share) : Math.round(share)} %`;
};
const seconds = (s) => `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
const size = (bytes) =>
  bytes < GIB
    ? `${Math.round(bytes / MIB)} MiB`
    : `${(bytes / GIB).toFixed(bytes < 10 * GIB ? 1 : 0)} GiB`;
const known = (value) => value !== undefined && value !== null;

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && known(value)) element.setAttribute(name, value);
  }
  put(element, ...children);
  return element;
}

function put(element, ...children) {
  element.replaceChildren(...children.filter(Boolean));
}

// -- A row's strip: reused tokens, computed ones, those left to compute ----------------

// `scale`: pixels a token.
function strip(row, scale) {
  const pieces = row.pieces ?? [];
  const bar = h("div", { class: "bar", role: "img", "aria-label": spoken(row) });
  bar.append(...pieces.map((piece) => drawPiece(piece, row, scale)));
  bar.style.width = `${(row.prompt_tokens ?? 0) * scale}px`;
  return bar;
}

function drawPiece({ fill, tokens, label }, row, scale) {
  if (fill === "break") return h("i", { class: fill, title: row.cause }, "▼");
  const fits = tokens * scale > LETTER * (label.length + 1);
  const element = h(
    "span",
    { class: fill, title: `${label} ${count(tokens)} ${fill}`.trim() },
    fits && label,
  );
  element.style.flexGrow = tokens;
  return element;
}

function spoken({ pieces = [] }) {
  const named = pieces
    .filter(({ tokens }) => tokens)
    .map(({ fill, tokens, label }) => `${label} ${count(tokens)} ${fill}`.trim());
  return named.slice(0, 8).join(", ");
}

// -- Rows ------------------------------------------------------------------------------

function stateOf(row, now) {
  const since = Math.max(0, now - (row.stage_t ?? now));
  switch (row.stage) {
    case "arrived":
      return `rendering ${seconds(since)}`;
    case "queued":
      return `queued ${seconds(since)}${row.behind ? ` behind #${row.behind}` : ""}`;
    case "planned":
    case "progress":
      return `${percent(row.done_tokens ?? row.reused_tokens ?? 0, row.prompt_tokens)} done`;
    case "first token":
      return `answers ${seconds(since)}`;
    default:
      return known(row.ttft_s) ? seconds(row.ttft_s) : row.outcome;
  }
}

function causeOf(row) {
  const failed =
    ["cancelled", "error", "refused"].includes(row.outcome) && known(row.ttft_s);
  return [row.headline, failed ? row.outcome : ""].filter(Boolean).join(", ");
}

class RowView {
  constructor(number, panel) {
    this.panel = panel;
    this.number = number;
    this.data = {};
    this.pick = h("input", {
      type: "checkbox",
      tabindex: -1,
      "aria-label": `select request ${number}`,
      onchange: () => panel.toggle(number),
    });
    const cell = (name) => h("span", { role: "gridcell", class: name });
    this.cells = Object.fromEntries(
      ["who", "strip", "share", "new", "state", "cause"].map((name) => [
        name,
        cell(name),
      ]),
    );
    this.element = h(
      "div",
      {
        role: "row",
        class: "row",
        tabindex: -1,
        "aria-expanded": "false",
        "aria-level": 1,
        "aria-selected": "false",
        onclick: (event) => event.target !== this.pick && panel.open(number),
        onfocus: () => panel.focus(number),
      },
      h("span", { role: "gridcell", class: "pick" }, this.pick),
      ...Object.values(this.cells),
    );
    this.detail = null;
  }

  draw(now, scale) {
    const { data, cells } = this;
    put(cells.who, h("b", {}, `#${this.number}`), ` ${data.agent ?? "main"}`);
    cells.who.title = `session ${data.session ?? ""}`;
    put(cells.strip, strip(data, scale));
    const isPlanned = known(data.reused_tokens) && known(data.prompt_tokens);
    cells.share.textContent = isPlanned
      ? percent(data.reused_tokens, data.prompt_tokens)
      : "";
    cells.new.textContent = isPlanned
      ? `${count(data.prompt_tokens - data.reused_tokens)} new`
      : "";
    cells.cause.textContent = cells.cause.title = causeOf(data);
    this.tick(now);
    if (this.detail && this.drawn !== data) {
      put(this.detail.firstChild, ...detailOf(data));
    }
    this.drawn = data;
  }

  tick(now) {
    this.cells.state.textContent = stateOf(this.data, now);
    this.element.classList.toggle("open", this.data.stage !== "ended");
  }

  toggleDetail() {
    if (this.detail) {
      this.detail.remove();
      this.detail = null;
    } else {
      const cell = h("div", { role: "gridcell" }, ...detailOf(this.data));
      this.detail = h("div", { role: "row", class: "detail", "aria-level": 2 }, cell);
      this.element.after(this.detail);
    }
    this.element.setAttribute("aria-expanded", String(this.detail !== null));
  }

  select(isSelected) {
    this.pick.checked = isSelected;
    this.element.setAttribute("aria-selected", String(isSelected));
  }

  remove() {
    this.element.remove();
    this.detail?.remove();
  }
}

// -- What a row opens to ---------------------------------------------------------------

function detailOf(row) {
  const found = [facts(row), change(row.detail), waterfall(row), shadows(row)];
  return found.filter(Boolean);
}

// Text of the prompt is masked until it is asked for.
function change(detail) {
  if (!detail) return null;
  const [where, ...lines] = detail.split("\n");
  const text = lines.join("\n");
  if (!text) return h("p", {}, where);
  const masked = text.replace(/[\p{L}\p{N}]/gu, "•");
  const shown = h("pre", {}, masked);
  const button = h(
    "button",
    {
      type: "button",
      "aria-pressed": "false",
      onclick: () => {
        const isShown = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(isShown));
        button.textContent = isShown ? "mask text" : "show text";
        shown.textContent = isShown ? text : masked;
      },
    },
    "show text",
  );
  return h("div", {}, h("p", { class: "where" }, where, button), shown);
}

function facts(row) {
  const tokens = known(row.prompt_tokens) && `${count(row.prompt_tokens)} tokens`;
  const disk = row.disk_tokens > 0 && `${count(row.disk_tokens)} of them from disk`;
  const reused = known(row.reused_tokens) && `${count(row.reused_tokens)} reused`;
  const lost = row.lost_tokens > 0 && `${count(row.lost_tokens)} lost`;
  const output = known(row.output_tokens) && `${count(row.output_tokens)} answered`;
  const remedy = row.remedy && `saved by: ${row.remedy}`;
  const end = row.outcome && `ended: ${row.outcome}`;
  const said = [
    row.session && `session ${row.session}`,
    row.strategy,
    tokens,
    reused,
    disk,
    output,
    end,
    row.cause,
    lost,
    remedy,
  ];
  return h("p", {}, said.filter(Boolean).join(" · "));
}

function waterfall(row) {
  const spent = PARTS.map((part) => [part, row[`${part}_s`]]).filter(([, s]) =>
    known(s),
  );
  const all = spent.reduce((sum, [, s]) => sum + s, 0);
  if (!all) return null;
  const bar = h("div", { class: "waterfall", "aria-hidden": "true" });
  for (const [part, s] of spent) {
    const element = h("span", { class: part });
    element.style.flexGrow = s / all;
    bar.append(element);
  }
  const legend = spent.map(([part, s]) =>
    h("span", { class: `key ${part}` }, `${part} ${s.toFixed(2)} s`),
  );
  return h("div", {}, bar, h("p", { class: "legend" }, ...legend));
}

function shadows(row) {
  const others = Object.entries(row.shadow ?? {});
  if (!others.length) return null;
  const line = (spec, reused, isServed) => {
    const bar = h("span", { class: "meter" }, h("span"));
    bar.firstChild.style.width = `${(100 * reused) / row.prompt_tokens}%`;
    return h(
      "tr",
      { class: isServed && "served" },
      h("th", { scope: "row" }, spec),
      h("td", {}, bar),
      h("td", {}, `${count(reused)} reused${isServed ? "" : " if it had served"}`),
    );
  };
  const lines = [
    line(row.strategy, row.reused_tokens ?? 0, true),
    ...others.map((other) => line(...other, false)),
  ];
  return h(
    "table",
    { "aria-label": "reuse under other strategies" },
    h("tbody", {}, ...lines),
  );
}

// -- The panel -------------------------------------------------------------------------

class Panel {
  constructor(root, send) {
    this.send = send;
    this.rows = new Map();
    this.selected = new Set();
    this.state = {};
    this.current = null;
    this.spokenAt = 0;
    this.head = h("header");
    this.rec = h("button", {
      type: "button",
      class: "rec",
      onclick: () => this.change({ record: !this.isRecording }),
    });
    this.totals = h("p", { class: "totals" });
    this.live = h("p", { class: "unseen", role: "status", "aria-live": "polite" });
    this.error = h("p", { class: "error", role: "alert", hidden: true });
    this.list = h("div", {
      role: "treegrid",
      class: "rows",
      "aria-label": "requests",
      "aria-multiselectable": "true",
      onkeydown: (event) => this.press(event),
    });
    this.empty = h("p", { class: "empty", hidden: true }, "No requests yet.");
    this.losses = h("div", { class: "losses" });
    this.chosen = h("p", { class: "chosen", hidden: true });
    this.connect = h("details", { class: "connect" });
    this.root = h(
      "section",
      {
        class: "mlxlab-panel",
        "aria-label": "mlxlab server",
        "data-lm-suppress-shortcuts": "true", // JupyterLab has keys of its own
      },
      this.head,
      this.totals,
      this.live,
      this.error,
      this.list,
      this.empty,
      this.losses,
      this.chosen,
      this.connect,
    );
    this.root.addEventListener("pointerdown", ({ target }) => {
      const menu = this.head.querySelector(".menu");
      if (menu && !menu.contains(target)) menu.open = false;
    });
    root.append(this.root);
    this.timer = setInterval(() => this.tick(), TICK_MS);
    this.resized = new ResizeObserver(() => this.draw([]));
    this.resized.observe(this.list);
  }

  close() {
    clearInterval(this.timer);
    this.resized.disconnect();
    this.root.remove();
  }

  receive(message) {
    if (message.error) return this.fail(message.error);
    if (message.done) return this.head.removeAttribute("aria-busy");
    if (message.offline) return this.lose(message.offline);
    if (this.root.classList.contains("offline")) this.hideError();
    this.root.classList.remove("offline");
    if (message.here) return;
    const isAtEnd =
      this.list.scrollTop + this.list.clientHeight > this.list.scrollHeight - 40;
    if (message.whole) this.clear();
    this.ahead = message.now - Date.now() / 1000;
    // What a part holds is shown until it comes again.
    for (const part of ["server", "meters", "totals", "losses"]) {
      if (message[part]) this.state[part] = message[part];
    }
    if (message.meters) this.drawRecording(message.meters);
    if (message.server) this.drawHead();
    this.take(message.rows, message.first, message.whole);
    if (message.totals || message.meters) this.drawTotals();
    if (message.losses) this.drawLosses();
    if (isAtEnd) this.list.scrollTop = this.list.scrollHeight;
  }

  // Requests

  clear() {
    for (const row of this.rows.values()) row.remove();
    this.rows.clear();
    this.selected.clear();
    this.chosen.hidden = true;
    this.hideError();
  }

  take(rows, first, isWhole) {
    for (const data of rows) {
      if (!this.rows.has(data.request)) this.insert(data.request);
      this.rows.get(data.request).data = data;
    }
    for (const [number, row] of this.rows) {
      if (number < first) {
        row.remove();
        this.rows.delete(number);
        this.selected.delete(number);
      }
    }
    this.empty.hidden = this.rows.size > 0;
    this.settle();
    if (isWhole)
      for (const number of this.state.meters.selected ?? []) this.mark(number, true);
    this.draw(rows.map((data) => data.request));
  }

  // Draws these rows, or all if strips are to be longer or shorter from now on.
  draw(numbers) {
    const rows = [...this.rows.values()];
    const longest = Math.max(1, ...rows.map((row) => row.data.prompt_tokens ?? 0));
    const scale = (rows[0]?.cells.strip.clientWidth ?? 0) / longest;
    const isSame = scale === this.scale;
    this.scale = scale;
    const changed = new Set(numbers);
    for (const row of rows)
      if (!isSame || changed.has(row.number)) row.draw(this.now(), scale);
  }

  insert(number) {
    const row = new RowView(number, this);
    const later = [...this.rows.keys()].filter((other) => other > number);
    const next = later.length ? this.rows.get(Math.min(...later)).element : null;
    this.list.insertBefore(row.element, next);
    this.rows.set(number, row);
  }

  now() {
    return Date.now() / 1000 + (this.ahead ?? 0);
  }

  tick() {
    if (this.root.classList.contains("offline")) return;
    for (const row of this.rows.values())
      if (row.data.stage !== "ended") row.tick(this.now());
  }

  open(number) {
    this.focus(number);
    this.rows.get(number).toggleDetail();
  }

  toggle(number) {
    this.mark(number, !this.selected.has(number));
    this.send({ selected: [...this.selected].sort((a, b) => a - b) });
  }

  mark(number, isSelected) {
    if (!this.rows.has(number)) return;
    if (isSelected) this.selected.add(number);
    else this.selected.delete(number);
    this.rows.get(number).select(isSelected);
    const size = this.selected.size;
    put(
      this.chosen,
      `${size} selected: in the next cell `,
      h("code", {}, "server.selected"),
    );
    this.chosen.hidden = size === 0;
  }

  // One row can be reached by the tab key; arrows go on from there.
  focus(number) {
    this.current = number;
    for (const [other, row] of this.rows)
      row.element.tabIndex = other === number ? 0 : -1;
  }

  settle() {
    if (!this.rows.has(this.current) && this.rows.size)
      this.focus([...this.rows.keys()].at(-1));
  }

  press(event) {
    const row = this.rows.get(this.current);
    if (!row || event.target !== row.element) return;
    const numbers = [...this.rows.keys()].sort((a, b) => a - b);
    const at = numbers.indexOf(this.current);
    const goTo = {
      ArrowDown: at + 1,
      ArrowUp: at - 1,
      Home: 0,
      End: numbers.length - 1,
    }[event.key];
    const isOpen = row.detail !== null;
    if (known(goTo)) this.rows.get(numbers[goTo])?.element.focus();
    else if (event.key === "Enter") row.toggleDetail();
    else if (event.key === "ArrowRight" && !isOpen) row.toggleDetail();
    else if (event.key === "ArrowLeft" && isOpen) row.toggleDetail();
    else if (event.key === " ") this.toggle(this.current);
    else return;
    event.preventDefault();
  }

  // Settings

  change(wanted) {
    this.hideError();
    this.head.setAttribute("aria-busy", "true");
    this.send(wanted);
  }

  drawHead() {
    const { server } = this.state;
    const controls = () => [
      ...this.head.querySelectorAll("select, summary, input, button"),
    ];
    const focused = controls().indexOf(this.root.getRootNode().activeElement);
    this.head.removeAttribute("aria-busy");
    this.root.classList.toggle("stopped", !server.is_running);
    const name = (server.url ?? "").replace(/^https?:\/\/(127\.0\.0\.1|localhost)/, "");
    const state = server.is_running ? "running" : "stopped";
    put(
      this.head,
      h("span", { class: "dot", role: "img", "aria-label": state, title: state }, "●"),
      h("b", { title: server.url }, name || state),
      h("span", { class: "model" }, server.model),
      this.strategies(server),
      this.rules(server),
      server.is_running && this.rec,
      server.is_running && this.stopper(),
    );
    controls()[focused]?.focus();
    this.drawConnect(server);
  }

  strategies({ strategy, strategies, is_running }) {
    const own = strategy.split(":")[0];
    const options = Object.entries(strategies).map(([kind, names]) =>
      h(
        "optgroup",
        { label: kind },
        ...names.map((name) =>
          h(
            "option",
            { value: name === own ? strategy : name },
            name === own ? strategy : name,
          ),
        ),
      ),
    );
    const select = h(
      "select",
      {
        "aria-label": "strategy",
        disabled: !is_running,
        onchange: () => this.change({ strategy: select.value }),
      },
      ...options,
    );
    select.value = strategy;
    return select;
  }

  rules({ rules, rules_label: label, is_running }) {
    const on = rules.filter((rule) => rule.is_on);
    const isOpen = this.head.querySelector(".menu")?.open;
    const boxes = rules.map((rule) =>
      h("input", {
        type: "checkbox",
        value: rule.name,
        checked: rule.is_on,
        disabled: !is_running,
      }),
    );
    const apply = () => {
      const names = boxes.filter((box) => box.checked).map((box) => box.value);
      this.change({ rules: names.join(",") || "none" });
    };
    for (const box of boxes) box.addEventListener("change", apply);
    const lines = rules.map((rule, i) =>
      h(
        "label",
        { title: rule.summary },
        boxes[i],
        ` ${rule.name}`,
        h("small", {}, rule.summary),
      ),
    );
    const menu = h(
      "details",
      { class: "menu", open: isOpen },
      h(
        "summary",
        {},
        label === "all" ? "all rules" : `${on.length} of ${rules.length} rules`,
      ),
      h("fieldset", {}, h("legend", { class: "unseen" }, "rules"), ...lines),
    );
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      menu.open = false;
      menu.firstChild.focus();
    });
    return menu;
  }

  drawRecording({ recording }) {
    const isOn = Boolean(recording && !recording.failure);
    this.isRecording = isOn;
    this.rec.classList.toggle("on", isOn);
    this.rec.setAttribute("aria-pressed", String(isOn));
    this.rec.title = recording
      ? recording.failure || `records into ${recording.file}; click to end`
      : "record requests into a new file";
    put(
      this.rec,
      h("span", { "aria-hidden": "true" }),
      isOn ? `rec ${count(recording.requests)}` : "rec",
    );
  }

  stopper() {
    const button = h(
      "button",
      {
        type: "button",
        class: "stop",
        onclick: () => {
          if (button.classList.toggle("sure")) {
            button.textContent = "stop now?";
            setTimeout(() => {
              button.classList.remove("sure");
              button.textContent = "stop";
            }, 4000);
          } else this.change({ stop: true });
        },
      },
      "stop",
    );
    return button;
  }

  drawConnect({ notices = [], environment = [], is_running }) {
    this.connect.hidden = !is_running || !environment.length;
    put(
      this.connect,
      h("summary", {}, "Connect Claude Code"),
      h(
        "p",
        {},
        h("code", {}, "mlxlab claude"),
        " in a terminal, or this environment and ",
        h("code", {}, "ANTHROPIC_AUTH_TOKEN"),
        " (••••••••, not shown):",
      ),
      h("pre", {}, environment.join("\n")),
      notices.length && h("pre", {}, notices.join("\n")),
    );
  }

  // Totals

  drawTotals() {
    const { totals, meters = {} } = this.state;
    if (!totals) return;
    const timed =
      known(totals.ttft_p50_s) &&
      `TTFT p50 ${totals.ttft_p50_s.toFixed(1)} p95 ${seconds(totals.ttft_p95_s)}`;
    const text = [
      totals.requests > 0 &&
        `${percent(totals.reused_tokens, totals.prompt_tokens)} reused`,
      timed,
      `${totals.running} running, ${totals.queued} queued`,
    ].filter(Boolean);
    const bars = ["memory", "cache", "disk"]
      .filter((name) => meters[name])
      .map((name) => gauge(name, ...meters[name]));
    put(this.totals, h("span", {}, text.join(" · ")), ...bars, meters.note);
    if (Date.now() - this.spokenAt > SPOKEN_MS && totals.requests) {
      this.spokenAt = Date.now();
      this.live.textContent = `${totals.requests} requests, ${text.join(", ")}`;
    }
  }

  drawLosses() {
    const { losses } = this.state;
    const sum = losses.lost_s;
    const items = losses.causes.map((loss) =>
      h(
        "li",
        {},
        `${loss.cause} ${sum ? seconds(loss.lost_s) : `${count(loss.lost_tokens)} tokens`}`,
        loss.remedy && " → ",
        loss.remedy && h("code", {}, loss.remedy),
        loss.setting && " ",
        loss.setting &&
          h(
            "button",
            {
              type: "button",
              "aria-label": `apply ${loss.remedy}`,
              onclick: () => this.change(loss.setting),
            },
            "apply",
          ),
      ),
    );
    put(
      this.losses,
      items.length &&
        h("span", {}, sum ? `Lost so far ${seconds(sum)}` : "Lost so far"),
      items.length && h("ul", {}, ...items),
    );
  }

  // Troubles

  fail(text) {
    if (this.state.server) this.drawHead(); // back to the settings in force
    put(
      this.error,
      text,
      " ",
      h(
        "button",
        { type: "button", "aria-label": "dismiss", onclick: () => this.hideError() },
        "×",
      ),
    );
    this.error.hidden = false;
  }

  hideError() {
    this.error.hidden = true;
    put(this.error);
  }

  lose(reason) {
    this.root.classList.add("offline");
    put(this.error, `Not connected: ${reason}.`);
    this.error.hidden = false;
  }
}

function gauge(name, used, most) {
  const text = `${size(used)} of ${size(most)}`;
  const bar = h("span", { class: "meter" }, h("span"));
  bar.firstChild.style.width = `${Math.min(100, (100 * used) / most)}%`;
  return h(
    "span",
    { class: "gauge", role: "img", "aria-label": `${name} ${text}` },
    name,
    bar,
    text,
  );
}

// Draws a panel into an element. `send` takes what the user wants to change.
export function mount(root, send) {
  const panel = new Panel(root, send);
  return { receive: (message) => panel.receive(message), close: () => panel.close() };
}

// For anywidget: a notebook's kernel is the server's process.
export default {
  render({ model, el }) {
    const panel = mount(el, (change) => model.send({ change }));
    // The same as HTML is kept in the notebook, and hidden while this is shown.
    const hidden = h(
      "style",
      {},
      `[data-mlxlab="${model.get("place")}"] { display: none }`,
    );
    let heard = Date.now();
    let isStopped = false; // then silence is right
    const receive = (message) => {
      heard = Date.now();
      if (message.server) isStopped = !message.server.is_running;
      document.head.append(hidden);
      panel.receive(message);
    };
    const check = setInterval(() => {
      const isSilent = !isStopped && Date.now() - heard > SILENT_MS;
      if (isSilent) panel.receive({ offline: "no kernel" });
    }, SILENT_MS / 6);
    const watch = () => model.send({ watch: true });
    // Its comm has ended, or lives again: then a snapshot follows.
    const reconnect = () => {
      panel.receive({ offline: "no kernel" });
      try {
        watch();
      } catch {
        // There is nothing to send to.
      }
    };
    model.on("msg:custom", receive);
    model.on("comm_live_update", reconnect);
    watch();
    return () => {
      model.off("msg:custom", receive);
      model.off("comm_live_update", reconnect);
      clearInterval(check);
      hidden.remove();
      panel.close();
    };
  },
};
