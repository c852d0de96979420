// What a page can do beyond showing: it looks again when something changed, follows logs, copies commands, takes keys.
// Nothing here makes markup out of data: parts come from the server, escaped, and texts go in as texts.
"use strict";
(() => {
  const body = document.body, base = body.dataset.base;
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // ---------------------------------------------------------------------------------------------- live regions
  const button = document.getElementById("live");
  let live = body.dataset.live === "on" && sessionStorage.getItem("rythmiq-live") !== "off";
  let source = null, looking = false, again = false, lastLook = 0;
  const closed = new WeakSet();

  const parse = (text) => new DOMParser().parseFromString(text, "text/html");

  // Whoever is at a link or in a field inside a region stays there.
  const place = (region) => {
    const at = document.activeElement;
    if (!at || !region.contains(at)) return null;
    const tag = at.tagName, mark = at.getAttribute("href") || at.getAttribute("aria-label") || at.id || at.name;
    return () => { const found = all(tag, region).find((each) => mark === (each.getAttribute("href") || each.getAttribute("aria-label") || each.id || each.name)); if (found) found.focus({ preventScroll: true }); };
  };

  async function look() {
    if (looking) { again = true; return; }
    looking = true;
    try {
      const answer = await fetch(location.href, { headers: { "X-Look": "again" }, cache: "no-store", credentials: "same-origin" });
      if (answer.ok) {
        const fresh = parse(await answer.text());
        for (const region of all("[data-region]")) {
          const now = one(`[data-region="${region.dataset.region}"]`, fresh);
          if (!now || now.innerHTML === region.dataset.was) continue;
          if (region.dataset.was === undefined && now.innerHTML === region.innerHTML) { region.dataset.was = now.innerHTML; continue; }
          const back = place(region), open = all("details", region).map((each) => each.open);
          const scrolled = all(".scroll", region).map((each) => each.scrollLeft);
          region.dataset.was = now.innerHTML;
          region.replaceChildren(...now.childNodes);
          all("details", region).forEach((each, at) => { if (open[at] !== undefined) each.open = open[at]; });
          all(".scroll", region).forEach((each, at) => { each.scrollLeft = scrolled[at] || 0; });
          prepare(region);
          if (back) back();
        }
        body.dataset.looked = String(Number(body.dataset.looked || 0) + 1);
      }
      if (button) button.classList.toggle("lost", !answer.ok);
    } catch { if (button) button.classList.add("lost"); }
    looking = false;
    lastLook = Date.now();
    if (again) { again = false; setTimeout(look, 1000); }
  }

  function listen() {
    if (source || !live || document.hidden) return;
    source = new EventSource(`${base}/events`);
    source.addEventListener("change", () => { setTimeout(look, Math.max(0, 1000 - (Date.now() - lastLook))); });
    source.onopen = () => { body.dataset.listening = "yes"; if (button) button.classList.remove("lost"); };
    source.onerror = () => { if (button) button.classList.add("lost"); };
  }
  function rest() { if (source) source.close(); source = null; delete body.dataset.listening; }

  if (body.dataset.live === "on" && button) {
    button.hidden = false;
    const show = () => { button.setAttribute("aria-pressed", String(live)); button.textContent = live ? "Live" : "Paused"; };
    button.addEventListener("click", () => { live = !live; sessionStorage.setItem("rythmiq-live", live ? "on" : "off"); show(); if (live) { look(); listen(); } else rest(); });
    show();
    listen();
    document.addEventListener("visibilitychange", () => { if (document.hidden) rest(); else if (live) { look(); listen(); } });
    window.addEventListener("pagehide", rest);
  }

  // --------------------------------------------------------------------------------------------------- parts
  async function load(at, address) {
    const answer = await fetch(address, { cache: "no-store", credentials: "same-origin" });
    at.replaceChildren(...parse(await answer.text()).body.childNodes);
    prepare(at);
    return at;
  }

  const logPart = document.getElementById("logpart");
  const toEnd = () => { const log = logPart && one(".log", logPart); if (log) log.scrollTop = log.scrollHeight; };
  for (const at of all("[data-load]")) load(at, at.dataset.load).then(() => { if (at === logPart) { toEnd(); if ("running" in at.dataset) startFollowing(); } }).catch(() => {});

  const form = one("[data-log-search]");
  if (form) form.addEventListener("submit", (event) => {
    event.preventDefault();
    stopFollowing();
    load(logPart, `${form.action}?${new URLSearchParams(new FormData(form))}`).then(toEnd).catch(() => {});
  });

  // --------------------------------------------------------------------------------------------------- follow
  const follow = one("[data-follow]");
  let stream = null;
  const MOST = 400000;
  function stopFollowing() { if (stream) stream.close(); stream = null; if (follow) { follow.setAttribute("aria-pressed", "false"); follow.textContent = "Follow"; } }
  function startFollowing() {
    if (stream || !follow) return;
    let log = one(".log", logPart);
    if (!log) { log = document.createElement("pre"); log.className = "log"; log.tabIndex = 0; log.setAttribute("role", "group"); log.setAttribute("aria-label", "Log"); log.dataset.bytes = "0"; logPart.replaceChildren(log); }
    stream = new EventSource(`${follow.dataset.follow}?at=${log.dataset.bytes || 0}`);
    follow.setAttribute("aria-pressed", "true"); follow.textContent = "Following";
    stream.addEventListener("text", (event) => {
      const down = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      log.append(JSON.parse(event.data).text);
      log.dataset.bytes = event.lastEventId;
      if (log.textContent.length > MOST) log.textContent = log.textContent.slice(-MOST / 2);
      if (down) log.scrollTop = log.scrollHeight;
    });
    stream.addEventListener("end", () => { stopFollowing(); follow.textContent = "Ended"; if (live) look(); });
  }
  if (follow) { follow.hidden = false; follow.addEventListener("click", () => { if (stream) stopFollowing(); else startFollowing(); }); window.addEventListener("pagehide", stopFollowing); }

  // --------------------------------------------------------------------------------- copy, previews, small things
  async function copy(text) {
    try { await navigator.clipboard.writeText(text); return; } catch { /* without TLS there is no clipboard */ }
    const field = document.createElement("textarea");
    field.value = text; field.className = "sr"; body.append(field); field.select(); document.execCommand("copy"); field.remove();
  }
  document.addEventListener("click", (event) => {
    const target = event.target instanceof Element ? event.target : null;
    const copied = target && target.closest("[data-copy]");
    if (copied) { copy(copied.dataset.copy).then(() => { const was = copied.firstChild.data; copied.firstChild.data = "Copied"; setTimeout(() => { copied.firstChild.data = was; }, 1200); }); return; }
    const shown = target && target.closest("[data-preview]");
    if (shown && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      const at = document.getElementById("preview");
      at.hidden = false;
      load(at, shown.href).then(() => { at.scrollIntoView({ block: "nearest" }); const close = one("[data-close]", at); if (close) { close.hidden = false; close.focus(); close.addEventListener("click", () => { at.hidden = true; at.replaceChildren(); shown.focus(); }); } }).catch(() => {});
    }
  });
  for (const auto of all("form[data-auto]")) for (const select of all("select", auto)) select.addEventListener("change", () => auto.submit());

  // ----------------------------------------------------------------------------------------- a group's picture
  function picture(holder) {
    const canvas = one(".canvas", holder), svg = one("svg", holder), readout = document.getElementById("readout");
    if (!canvas || closed.has(holder)) return;
    closed.add(holder);
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `${svg.getAttribute("aria-label")}. Arrow keys move, Enter opens the member.`);
    let data = null, loading = null, at = 0, cells = new Map(), mark = null;
    const wanted = () => loading || (loading = fetch(holder.dataset.picture, { credentials: "same-origin" }).then((answer) => answer.json()).then((found) => {
      data = found;
      if (found.kind !== "scatter") for (const member of found.members) { const key = `${member[1]},${member[2]}`; if (!cells.has(key)) cells.set(key, []); cells.get(key).push(member); }
      holder.dataset.ready = "yes";
    }));
    const view = svg.viewBox.baseVal;
    const near = (x, y) => {
      if (data.kind !== "scatter") return cells.get(`${Math.min(data.across - 1, Math.floor(x * data.across))},${Math.min(data.down - 1, Math.floor(y * data.down))}`) || [];
      const box = svg.getBoundingClientRect();
      let best = null, least = 400;
      for (const member of data.members) {
        const dx = (0.01 + member[1] * 0.98 - x) * box.width, dy = ((10 + (1 - member[2]) * (view.height - 20)) / view.height - y) * box.height;
        const far = dx * dx + dy * dy;
        if (far < least) { least = far; best = member; }
      }
      return best ? [best] : [];
    };
    const say = (members) => {
      readout.replaceChildren();
      if (mark) mark.remove();
      if (!members.length) { readout.textContent = "No member is here."; return; }
      members.slice(0, 12).forEach((member, place) => {
        if (place) readout.append(" — ");
        const link = document.createElement("a");
        link.href = holder.dataset.members + member[0];
        link.textContent = `${member[0]}: ${member[3]}`;
        readout.append(link);
      });
      if (members.length > 12) readout.append(` — and ${members.length - 12} more`);
      mark = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      mark.setAttribute("class", "cursor");
      const first = members[0], box = svg.getBoundingClientRect();
      const w = data.kind === "scatter" ? 14 * view.width / box.width : 1, h = data.kind === "scatter" ? 14 * view.height / box.height : 1;
      mark.setAttribute("x", data.kind === "scatter" ? (0.01 + first[1] * 0.98) * view.width - w / 2 : first[1]);
      mark.setAttribute("y", data.kind === "scatter" ? 10 + (1 - first[2]) * (view.height - 20) - h / 2 : first[2]);
      mark.setAttribute("width", w); mark.setAttribute("height", h);
      svg.append(mark);
    };
    const open = (members) => { if (members.length) location.href = holder.dataset.members + members[0][0]; };
    const where = (event) => { const box = svg.getBoundingClientRect(); return near((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height); };
    canvas.addEventListener("pointermove", (event) => { wanted().then(() => say(where(event))); });
    canvas.addEventListener("click", (event) => { wanted().then(() => { const found = where(event); say(found); if (found.length === 1) open(found); }); });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step && event.key !== "Enter") return;
      event.preventDefault();
      wanted().then(() => {
        const order = data.kind === "scatter" ? [...data.members].sort((a, b) => a[1] - b[1] || a[2] - b[2]) : null;
        if (event.key === "Enter") { open(order ? [order[at]] : cells.get(`${at % data.across},${Math.floor(at / data.across)}`) || []); return; }
        if (order) at = Math.max(0, Math.min(order.length - 1, at + step[0] - step[1]));
        else { const x = Math.max(0, Math.min(data.across - 1, at % data.across + step[0])), y = Math.max(0, Math.min(data.down - 1, Math.floor(at / data.across) + step[1])); at = y * data.across + x; }
        say(order ? [order[at]] : cells.get(`${at % data.across},${Math.floor(at / data.across)}`) || []);
      });
    });
  }

  function prepare(within) { for (const each of all("[data-picture]", within)) picture(each); }
  prepare(document);

  // ------------------------------------------------------------------------------------------------------ keys
  let went = false;
  const pages = { o: "", j: "jobs", g: "groups", q: "queues", d: "drivers", s: "schedules", c: "cost" };
  document.addEventListener("keydown", (event) => {
    const at = event.target instanceof Element ? event.target : body;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (at.matches("input, select, textarea")) { if (event.key === "Escape") at.blur(); return; }
    if (went) { went = false; if (event.key in pages) { event.preventDefault(); location.href = `${base}/${pages[event.key]}`; return; } }
    if (event.key === "g") { went = true; setTimeout(() => { went = false; }, 1500); return; }
    if (event.key === "/") { event.preventDefault(); document.getElementById("find").focus(); return; }
    if (event.key === "n" || event.key === "p") { const link = one(`[data-key="${event.key}"]`); if (link) location.href = link.href; return; }
    if (event.key !== "j" && event.key !== "k") return;
    const rows = all("tr[data-row]").filter((row) => one("a", row));
    if (!rows.length) return;
    const now = rows.findIndex((row) => row.contains(document.activeElement));
    const next = rows[Math.max(0, Math.min(rows.length - 1, now < 0 ? 0 : now + (event.key === "j" ? 1 : -1)))];
    for (const row of rows) row.classList.toggle("chosen", row === next);
    one("a", next).focus();
    next.scrollIntoView({ block: "nearest" });
  });
})();
