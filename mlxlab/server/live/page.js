// Connects the panel to its server: events by a streamed answer, changes by POST.
// The token comes in the fragment of the address and goes out in a header only.

import { mount } from "/panel.js";

const RETRY_MS = 2000;
const form = document.getElementById("ask");
const why = document.getElementById("why");
const key = "mlxlab-token";

function takeToken() {
  const given = decodeURIComponent(location.hash.slice(1));
  if (given) {
    sessionStorage.setItem(key, given);
    history.replaceState(null, "", location.pathname); // it leaves the address bar
  }
  return sessionStorage.getItem(key);
}

const headers = () => ({ "x-api-key": sessionStorage.getItem(key) ?? "" });

async function messageOf(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `status ${answer.status}`;
  }
}

async function change(wanted) {
  try {
    const sent = { method: "POST", headers: headers(), body: JSON.stringify(wanted) };
    const answer = await fetch("/change", sent);
    panel.receive(answer.ok ? { done: true } : { error: await messageOf(answer) });
  } catch {
    panel.receive({ error: "the server does not answer" });
  }
}

const panel = mount(document.getElementById("panel"), change);

async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

async function watch() {
  const answer = await fetch("/view", { headers: headers(), cache: "no-store" });
  if (answer.status === 401) {
    sessionStorage.removeItem(key);
    ask("The server does not accept this token.");
    return false;
  }
  if (!answer.ok) throw new Error(await messageOf(answer));
  for await (const event of eventsOf(answer)) panel.receive(event);
  throw new Error("the server has stopped");
}

async function keepWatching() {
  for (let go = true; go;) {
    try {
      go = await watch();
    } catch (error) {
      panel.receive({ offline: error.message });
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

function ask(reason) {
  why.textContent = reason;
  form.hidden = false;
  document.getElementById("token").focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(key, document.getElementById("token").value);
  form.reset();
  form.hidden = true;
  keepWatching();
});

if (takeToken()) keepWatching();
else ask("Open the address that the server printed, or give its token.");
