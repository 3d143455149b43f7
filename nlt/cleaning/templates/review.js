"use strict";
// Names reach the page as text only (textContent, option text, CSV fields), never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const el = (id) => document.getElementById(id);
const N = data.ids.length, K = data.classes.length, STORE = "nlt:" + data.digest;
const TILE_W = 134, TILE_H = 170, AHEAD = 3, UNDO = 500;
const HEAD = [data.id, "sha256", "given_label", "decision", "label", "tab", "time", "reviewer", "result"];

// ---- state: item -> {decision, label, time, tab, reviewer}; kept in the browser, by the result's digest ----
// What was taken back stays as an empty decision with its time: else it would hold in whoever was handed it before.

let state = { reviewer: "", decisions: {}, history: [] };
let tab = "overview", shown = [], current = 0;
const kept = { overview: 0, review: 0, sample: 0 };

function restore() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE));
    if (found && typeof found.decisions === "object" && Array.isArray(found.history)) state = found;
  } catch (error) { say("This browser keeps nothing for this page: download your decisions before you close it."); }
  if (!state.reviewer) state.reviewer = name_reviewer();
}

function name_reviewer() {
  const bytes = new Uint8Array(6);
  crypto.getRandomValues(bytes);
  return [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
}

function save() {
  try { localStorage.setItem(STORE, JSON.stringify(state)); }
  catch (error) { say("This browser keeps nothing for this page: download your decisions before you close it."); }
}

function said_of(item) { const said = state.decisions[item]; return said && said.decision ? said : null; }

function put(item, decision, label, where) {
  state.decisions[item] = { decision, label, tab: where, time: new Date().toISOString(), reviewer: state.reviewer };
  save();
}

function decide(decision, label) {
  const item = shown[current];
  if (item === undefined) return;
  state.history.push([item, said_of(item), tab]);
  if (state.history.length > UNDO) state.history.shift();
  put(item, decision, label, tab);
  const next = shown.findIndex((other, place) => place > current && !said_of(other));
  if (next >= 0) current = next;
  else if (current < shown.length - 1) current += 1;
  show();
}

function undo() {
  const last = state.history.pop();
  if (!last) return;
  const [item, before, where] = last;
  if (before) put(item, before.decision, before.label, before.tab); // said anew: what was taken back is later than it
  else put(item, "", "", where);
  if (where !== tab) open_tab(where);
  let place = shown.indexOf(item);
  if (place < 0) { el("pair").value = ""; el("open-only").checked = false; filter(); place = shown.indexOf(item); }
  current = Math.max(0, place);
  show();
}

// ---- what is shown ----

function list_of(name) { return name === "sample" ? data.sample : data.review; }

function filter(item) {
  const pair = el("pair").value, open_only = el("open-only").checked;
  shown = list_of(tab).filter((i) => (!pair || pair_of(i) === pair) && (!open_only || !said_of(i)));
  current = Math.max(0, item === undefined ? 0 : shown.indexOf(item));
}

function pair_of(i) { return tab === "sample" ? String(data.given[i]) : data.given[i] + ">" + data.suggested[i]; }

function fill_pairs() {
  const counts = new Map();
  for (const i of list_of(tab)) counts.set(pair_of(i), (counts.get(pair_of(i)) || 0) + 1);
  const options = [...counts].sort((a, b) => b[1] - a[1]).map(([pair, count]) => {
    const [given, suggested] = pair.split(">").map((k) => data.classes[k]);
    return new Option((suggested === undefined || suggested === given ? given : given + " → " + suggested) + "  (" + count + ")", pair);
  });
  el("pair").replaceChildren(new Option("all (" + list_of(tab).length + ")", ""), ...options);
}

function open_tab(name) {
  if (tab !== "overview") kept[tab] = shown[current];
  tab = name;
  for (const each of ["overview", "review", "sample"]) {
    el("tab-" + each).setAttribute("aria-selected", String(each === name));
    el("tab-" + each).tabIndex = each === name ? 0 : -1;
  }
  el("overview").hidden = name !== "overview";
  el("work").hidden = name === "overview";
  document.body.classList.toggle("working", name !== "overview");
  if (name === "overview") return;
  el("work").className = name;
  el("work").setAttribute("aria-labelledby", "tab-" + name);
  fill_pairs();
  el("open-only").checked = false;
  filter();
  const start = kept[name] ? shown.indexOf(kept[name]) : shown.findIndex((i) => !said_of(i));
  current = Math.max(0, start);
  el("grid").scrollTop = 0;
  show();
  el("grid").focus({ preventScroll: true });
}

function progress() {
  for (const name of ["review", "sample"]) {
    const list = list_of(name), done = list.filter(said_of).length;
    el("count-" + name).textContent = done + "/" + list.length;
    if (name !== tab) continue;
    el("progress").textContent = done.toLocaleString("en") + " of " + list.length.toLocaleString("en") + " decided";
    el("fill").style.width = (list.length ? 100 * done / list.length : 0) + "%";
    el("track").setAttribute("aria-valuemax", list.length);
    el("track").setAttribute("aria-valuenow", done);
  }
}

function picture(i, image) {
  image.src = "data:image/jpeg;base64," + data.images[i];
  image.onload = () => image.classList.toggle("pixels", image.naturalWidth < 96 && image.naturalHeight < 96);
}

function show() {
  progress();
  const item = shown[current], none = item === undefined;
  for (const button of document.querySelectorAll(".keys button")) button.disabled = none && button.dataset.key !== "z";
  el("picture").hidden = none || !data.images.length;
  el("no-picture").hidden = !el("picture").hidden;
  if (!none) {
    const given = data.classes[data.given[item]], suggested = data.classes[data.suggested[item]];
    const same = given === suggested, said = said_of(item);
    if (data.images.length) { picture(item, el("picture")); el("picture").alt = "sample labelled " + given; }
    el("given").textContent = given;
    el("suggested").textContent = same ? "the same" : suggested;
    el("p").textContent = "probability " + data.p[item].toFixed(2) + (data.reasons[item] && data.reasons[item] !== "p_wrong" ? " (" + data.reasons[item].replaceAll("_", " ") + ")" : "");
    el("keep-name").textContent = given;
    el("suggest-name").textContent = same ? "…" : suggested;
    el("path").textContent = data.ids[item];
    el("question").textContent = tab === "sample" ? "Is the given label right? Drawn at random, in this order; nothing is suggested, so that nothing sways you." : "";
    el("question").hidden = tab !== "sample";
    for (const button of document.querySelectorAll(".keys button")) {
      const key = button.dataset.key;
      if (key === "s") button.disabled = same;
      if (key === "z") { button.disabled = !state.history.length; continue; }
      const pressed = said && ({ k: said.decision === "keep", s: said.decision === "relabel" && said.label === suggested, o: said.decision === "relabel" && (said.label !== suggested || tab === "sample"), x: said.decision === "remove", u: said.decision === "unsure" })[key];
      button.setAttribute("aria-pressed", String(Boolean(pressed)));
    }
    el("spoken").textContent = (current + 1) + " of " + shown.length + ": given " + given + (tab === "sample" || same ? "" : ", suggested " + suggested);
  } else {
    for (const id of ["given", "suggested", "p", "keep-name", "suggest-name", "path", "question"]) el(id).textContent = "";
    el("spoken").textContent = "nothing to show";
  }
  reveal();
  draw();
}

// ---- the grid: only the tiles in view are in the document ----

function columns() { return Math.max(1, Math.floor((el("grid").clientWidth - 20) / TILE_W)); }

function reveal() {
  const top = Math.floor(current / columns()) * TILE_H, grid = el("grid");
  if (top < grid.scrollTop) grid.scrollTop = Math.max(0, top - 6);
  else if (top + TILE_H + 20 > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + TILE_H + 20 - grid.clientHeight;
}

function draw() {
  const across = columns(), grid = el("grid"), sheet = el("sheet"), apart = (grid.clientWidth - 20) / across;
  sheet.style.height = Math.ceil(shown.length / across) * TILE_H + "px";
  const first = Math.max(0, Math.floor(grid.scrollTop / TILE_H) - AHEAD) * across;
  const last = Math.min(shown.length, (Math.ceil((grid.scrollTop + grid.clientHeight) / TILE_H) + AHEAD) * across);
  const before = new Map([...sheet.children].map((tile) => [tile.dataset.face, tile]));
  const tiles = [];
  for (let place = first; place < last; place++) {
    const item = shown[place], said = said_of(item);
    const face = [tab, item, said ? said.decision + said.label : ""].join("\n");
    const tile = before.get(face) || make_tile(item, said, face);
    tile.style.left = Math.round((place % across + 0.5) * apart - TILE_W / 2) + "px";
    tile.style.top = Math.floor(place / across) * TILE_H + "px";
    tile.classList.toggle("current", place === current);
    tile.setAttribute("aria-selected", String(place === current));
    tile.setAttribute("aria-posinset", place + 1);
    tile.setAttribute("aria-setsize", shown.length);
    tile.id = "tile-" + item;
    tiles.push(tile);
  }
  if (!shown.length) tiles.push(text("div", "nothing", list_of(tab).length ? "Nothing left here: choose another pair, or show the decided ones." : "Nothing to show."));
  sheet.replaceChildren(...tiles);
  if (shown.length) grid.setAttribute("aria-activedescendant", "tile-" + shown[current]);
  else grid.removeAttribute("aria-activedescendant");
}

function make_tile(item, said, face) {
  const given = data.classes[data.given[item]], suggested = data.classes[data.suggested[item]];
  const tile = text("div", said ? "tile done" : "tile", "");
  tile.setAttribute("role", "option");
  tile.setAttribute("aria-label", given + (tab === "sample" || given === suggested ? "" : ", suggested " + suggested) + (said ? ", " + said.decision : ""));
  tile.dataset.face = face;
  tile.dataset.item = item;
  tile.title = data.ids[item];
  if (data.images.length) {
    const image = document.createElement("img");
    image.alt = "";
    image.decoding = "async";
    picture(item, image);
    tile.append(image);
  } else tile.append(text("span", "none", ""));
  tile.append(text("p", "", given));
  tile.append(text("p", "to", tab === "sample" || given === suggested ? "" : "→ " + suggested));
  if (said) tile.append(text("span", "mark " + said.decision, said.decision === "relabel" ? "→ " + said.label : { keep: "kept", remove: "removed", unsure: "unsure" }[said.decision]));
  return tile;
}

function text(kind, name, content) {
  const made = document.createElement(kind);
  made.className = name;
  made.textContent = content;
  return made;
}

function say(sentence) {
  el("notice").textContent = sentence;
  el("notice").hidden = !sentence;
}

// ---- another class ----

function pick() {
  if (shown[current] === undefined) return;
  el("search").value = "";
  choices();
  el("picker").showModal();
  el("search").focus();
}

function choices() {
  const item = shown[current], wanted = el("search").value.trim().toLowerCase();
  const starts = (name) => Number(!name.toLowerCase().startsWith(wanted));
  const found = data.classes.filter((name, k) => k !== data.given[item] && name.toLowerCase().includes(wanted));
  found.sort((a, b) => starts(a) - starts(b));
  el("choices").replaceChildren(...found.slice(0, 300).map((name) => {
    const button = text("button", "", name);
    button.type = "button";
    button.onclick = () => { el("picker").close(); decide("relabel", name); };
    return button;
  }));
}

// ---- decisions.csv ----

function quoted(field) { return /[",\r\n]/.test(field) ? '"' + field.replaceAll('"', '""') + '"' : field; }

function as_csv() {
  const lines = [HEAD];
  for (const item of Object.keys(state.decisions).map(Number).sort((a, b) => a - b)) {
    const said = state.decisions[item];
    lines.push([data.ids[item], data.sums[item], data.classes[data.given[item]], said.decision, said.label, said.tab, said.time, said.reviewer, data.digest]);
  }
  return lines.map((line) => line.map((field) => quoted(String(field))).join(",")).join("\n") + "\n";
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([as_csv()], { type: "text/csv" }));
  link.download = "decisions.csv";
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function parse_csv(content) {
  const lines = [[""]];
  let inside = false;
  for (let i = content.charCodeAt(0) === 0xfeff ? 1 : 0; i < content.length; i++) {
    const c = content[i], line = lines[lines.length - 1];
    if (inside && c === '"' && content[i + 1] === '"') { line[line.length - 1] += '"'; i++; }
    else if (c === '"') inside = !inside;
    else if (inside) line[line.length - 1] += c;
    else if (c === ",") line.push("");
    else if (c === "\n") lines.push([""]);
    else if (c !== "\r") line[line.length - 1] += c;
  }
  return lines.filter((line) => line.length > 1 || line[0]);
}

function load(content) {
  const [head, ...lines] = parse_csv(content);
  const at = Object.fromEntries((head || []).map((name, place) => [name, place]));
  if (at[data.id] === undefined || at.decision === undefined) return say("This is no decisions.csv: it has no columns " + data.id + " and decision.");
  if (at.p_wrong !== undefined) return say("This is nlt's own table, not what people decided: load a decisions.csv.");
  const items = new Map(data.ids.map((id, item) => [id, item]));
  const fresh = !Object.keys(state.decisions).some(said_of), people = new Set();
  let taken = 0, unknown = 0, older = 0;
  for (const line of lines) {
    const field = (name) => (at[name] === undefined ? "" : line[at[name]] || "");
    if (field("result") && field("result") !== data.digest) return say("These decisions are about another result, so none was taken.");
    const item = items.get(field(data.id));
    const decision = field("decision"), label = field("label");
    const given = item === undefined ? "" : data.classes[data.given[item]];
    if (item === undefined || !["", given].includes(field("given_label")) || !["keep", "relabel", "remove", "unsure", ""].includes(decision) || (decision === "relabel" && !data.classes.includes(label))) { unknown++; continue; }
    if (!decision && !field("time")) continue; // not filled in yet
    const before = state.decisions[item], reviewer = field("reviewer") || "loaded";
    const apart = before && before.reviewer !== reviewer && !(before.decision && decision); // one takes back one's own alone
    if (before && (apart ? !decision : before.time >= field("time"))) { older += Number(decision !== ""); continue; }
    state.decisions[item] = { decision, label, tab: field("tab"), time: field("time"), reviewer };
    people.add(field("reviewer"));
    taken += Number(decision !== "");
  }
  if (fresh && people.size === 1 && [...people][0]) state.reviewer = [...people][0]; // the same person, elsewhere
  state.history = [];
  save();
  filter(shown[current]);
  show();
  say(taken + " decisions taken" + (older ? ", " + older + " older than yours left out" : "") + (unknown ? ", " + unknown + " not about samples on this page left out" : "") + ".");
}

// ---- events ----

const actions = {
  k: () => decide("keep", data.classes[data.given[shown[current]]]),
  s: () => { const i = shown[current]; if (tab !== "sample" && data.given[i] !== data.suggested[i]) decide("relabel", data.classes[data.suggested[i]]); },
  o: pick,
  x: () => decide("remove", ""),
  u: () => decide("unsure", ""),
  z: undo,
};

function move(step) {
  current = Math.min(shown.length - 1, Math.max(0, current + step));
  show();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || el("picker").open) return;
  if (event.target.getAttribute("role") === "tab") {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], names = ["overview", "review", "sample"];
    if (step) { const name = names[(names.indexOf(tab) + step + 3) % 3]; open_tab(name); el("tab-" + name).focus(); event.preventDefault(); }
    return;
  }
  if (tab === "overview" || ["SELECT", "INPUT"].includes(event.target.tagName) && event.target.type !== "checkbox") return;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
  const key = event.key.toLowerCase();
  if (event.key in steps) move(steps[event.key]);
  else if (event.key === "Home") move(-shown.length);
  else if (event.key === "End") move(shown.length);
  else if (actions[key] && !(shown[current] === undefined && key !== "z")) actions[key]();
  else return;
  event.preventDefault();
});
for (const name of ["overview", "review", "sample"]) el("tab-" + name).onclick = () => open_tab(name);
for (const button of document.querySelectorAll("[data-go]")) button.onclick = () => { open_tab(button.dataset.go); window.scrollTo(0, 0); };
for (const button of document.querySelectorAll(".keys button")) button.onclick = () => actions[button.dataset.key]();
el("grid").addEventListener("click", (event) => {
  const tile = event.target.closest(".tile");
  if (tile) { current = shown.indexOf(Number(tile.dataset.item)); show(); }
});
el("grid").addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
window.addEventListener("resize", () => { if (tab !== "overview") draw(); });
el("pair").onchange = () => { filter(); show(); };
el("open-only").onchange = () => { filter(); show(); };
el("download").onclick = download;
el("load").onchange = async (event) => {
  const file = event.target.files[0];
  if (file) load(await file.text());
  event.target.value = "";
};
el("search").oninput = choices;
el("picker").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target === el("search")) { event.preventDefault(); el("choices").querySelector("button")?.click(); }
});
restore();
progress();
