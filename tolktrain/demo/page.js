"use strict";

const byId = (id) => document.getElementById(id);
const COLUMN = 7; // pixels of a unit in the map
const ROW = 12; // and of a layer

let about = null;
let recorder = null;
let recording = null; // WAV of the last recording
let stream = null; // AbortController of the continuation under way
let player = null;
let units = []; // {unit, layers} of the continuation

// ---- what can be chosen ----

const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;

function choose(name, value) {
  const input = document.querySelector(`input[name="${name}"][value="${value}"]`);
  if (!input.disabled) input.checked = true;
}

function showSource() {
  for (const name of ["text", "recording", "upload"]) byId(`from-${name}`).hidden = chosen("source") !== name;
  const blob = chosen("source") === "recording" ? recording : chosen("source") === "upload" ? byId("file").files[0] : null;
  setAudio(byId("prompt-audio"), blob ?? null);
}

function setAudio(element, blob) {
  if (element.src) URL.revokeObjectURL(element.src);
  element.hidden = blob === null;
  if (blob === null) element.removeAttribute("src");
  else element.src = URL.createObjectURL(blob);
}

function setStatus(message, isBad = false) {
  byId("status").textContent = message;
  byId("status").classList.toggle("bad", isBad);
}

async function load() {
  const response = await fetch("about");
  if (!response.ok) throw new Error(await response.text());
  about = await response.json();
  document.title = byId("run").textContent = about.run;
  const speech = about.speaks ? "reads and writes text, hears and speaks" : "hears; its units give no audio";
  const step = about.step === null ? "" : `Step ${about.step}, `;
  byId("about").textContent =
    `${step}${about.num_layers} layers; ${about.hears ? speech : "reads and writes text"}. ` +
    `A prompt may have up to ${about.window.toLocaleString("en")} positions.`;
  for (const input of document.querySelectorAll('[name="source"]'))
    input.disabled = input.value === "text" ? !about.reads_text : !about.hears;
  document.querySelector('[name="to"][value="text"]').disabled = !about.reads_text;
  for (const key of ["temperature", "top_k", "seed"]) byId(key).value = about[key];
  offerConversations();
  choose("source", about.reads_text ? "text" : "upload");
  choose("to", "speech");
  showSource();
  byId("go").disabled = false;
}

// ---- recording ----

async function record() {
  if (recorder) {
    recorder.stop();
    return;
  }
  const microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
  const pieces = [];
  recorder = new MediaRecorder(microphone);
  recorder.ondataavailable = (event) => pieces.push(event.data);
  recorder.onstop = async () => {
    microphone.getTracks().forEach((track) => track.stop());
    recorder = null;
    byId("record").textContent = "Record again";
    byId("record").classList.remove("on");
    try {
      recording = await toWav(new Blob(pieces));
      byId("recorded").textContent = "";
    } catch (error) {
      byId("recorded").textContent = `The recording cannot be read: ${error.message}`;
    }
    showSource();
  };
  recorder.start();
  byId("record").textContent = "Stop recording";
  byId("record").classList.add("on");
  byId("recorded").textContent = "Speak now.";
}

// Browsers record in formats that few audio libraries read, but decode them.
async function toWav(blob) {
  const context = new AudioContext();
  const audio = await context.decodeAudioData(await blob.arrayBuffer());
  await context.close();
  const mono = new Float32Array(audio.length);
  for (let channel = 0; channel < audio.numberOfChannels; channel++)
    audio.getChannelData(channel).forEach((value, place) => (mono[place] += value / audio.numberOfChannels));
  return wav(mono, audio.sampleRate);
}

function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const write = (offset, text) => [...text].forEach((letter, place) => view.setUint8(offset + place, letter.charCodeAt(0)));
  write(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  write(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // mono
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  write(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, place) => view.setInt16(44 + 2 * place, Math.max(-1, Math.min(1, value)) * 32767, true));
  return new Blob([view], { type: "audio/wav" });
}

// ---- playing what comes ----

const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

class Player {
  constructor(rate) {
    this.context = new AudioContext();
    this.rate = rate;
    this.end = 0; // of what is scheduled, in the context's time
  }

  add(base64) {
    const view = new DataView(bytesOf(base64).buffer);
    const buffer = this.context.createBuffer(1, Math.max(view.byteLength / 2, 1), this.rate);
    const channel = buffer.getChannelData(0);
    for (let place = 0; place < view.byteLength / 2; place++) channel[place] = view.getInt16(2 * place, true) / 32768;
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    this.end = Math.max(this.end, this.context.currentTime + 0.1);
    source.start(this.end);
    this.end += buffer.duration;
  }

  stop() {
    this.context.close();
  }
}

// ---- the layers of each unit ----

function drawMap() {
  const canvas = byId("map");
  const layers = about.num_layers;
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [Math.max(units.length * COLUMN, 1), layers * ROW];
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  context.fillStyle = style.getPropertyValue("--band");
  context.fillRect(0, 0, width, height);
  context.fillStyle = style.getPropertyValue("--speech");
  units.forEach(({ layers: weights }, column) =>
    weights.forEach((weight, layer) => {
      context.globalAlpha = weight;
      context.fillRect(column * COLUMN, height - (layer + 1) * ROW, COLUMN - 1, ROW - 1);
    }),
  );
}

function describeUnit(event) {
  const found = units[Math.floor(event.offsetX / COLUMN)];
  if (!found) return;
  const best = found.layers.map((weight, layer) => [weight, layer + 1]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  byId("picked").textContent =
    `Unit ${found.unit}: ` + best.map(([weight, layer]) => `layer ${layer} ${(100 * weight).toFixed(0)} %`).join(", ");
}

function weightsOf(event) {
  if (event.layers) return event.layers;
  if (about.static_weights) return about.static_weights;
  return Array.from({ length: about.num_layers }, (_, layer) => Number(layer === about.num_layers - 1));
}

// ---- continuing ----

function settings() {
  const found = { to: chosen("to"), ends_utterance: byId("ends_utterance").checked };
  for (const key of ["temperature", "top_k", "top_p", "seed", "seconds", "length"]) found[key] = byId(key).valueAsNumber;
  return found;
}

function prompt() {
  const source = chosen("source");
  if (source === "text") {
    if (!byId("text").value.trim()) throw new Error("Type a prompt first.");
    return byId("text").value;
  }
  const audio = source === "recording" ? recording : byId("file").files[0];
  if (!audio) throw new Error(source === "recording" ? "Record a prompt first." : "Choose an audio file first.");
  return audio;
}

function begin() {
  units = [];
  byId("result").hidden = false;
  byId("words").textContent = byId("timing").textContent = "";
  byId("words").className = chosen("to");
  byId("layers").hidden = true;
  setAudio(byId("audio"), null);
  player?.stop();
  player = chosen("to") === "speech" && about.speaks ? new Player(about.sample_rate) : null;
}

const handlers = {
  waiting: () => setStatus("Waiting for another continuation ..."),
  error: (event) => {
    setStatus(event.message, true);
    byId("result").hidden = !byId("words").textContent;
  },
  position: (event) => {
    setStatus("Continuing ...");
    byId("words").append(event.unit === undefined ? event.text : `${event.unit} `);
    if (event.unit === undefined) return;
    units.push({ unit: event.unit, layers: weightsOf(event) });
    byId("layers").hidden = false;
    requestAnimationFrame(drawMap);
  },
  audio: (event) => player?.add(event.pcm),
  done: (event) => {
    setStatus("");
    if (event.text !== null) byId("words").textContent = event.text;
    if (event.wav) setAudio(byId("audio"), new Blob([bytesOf(event.wav)], { type: "audio/wav" }));
    const speed = event.ms_per_position === null ? "" : `, ${event.ms_per_position} ms each`;
    const audio = event.audio_seconds ? `; ${event.audio_seconds} s of audio` : "";
    byId("timing").textContent =
      `${event.prompt_positions} positions read, ${event.positions} drawn in ${event.seconds} s${speed}${audio}.`;
  },
};

async function receive(response, handlers) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let isEnded = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      handlers[event.kind](event);
      isEnded ||= event.kind === "done" || event.kind === "error";
    }
  }
  if (!isEnded) throw new Error("The server ended the continuation; see its terminal.");
}

async function submit(event) {
  event.preventDefault();
  if (stream) return;
  const form = new FormData();
  try {
    form.append("prompt", prompt());
  } catch (error) {
    setStatus(error.message, true);
    return;
  }
  const isTurn = chosen("mode") === "converse";
  form.append("settings", JSON.stringify(isTurn ? turnSettings() : settings()));
  stream = new AbortController();
  byId("go").disabled = true;
  byId("stop").hidden = false;
  setStatus(isTurn ? "Reading the turn ..." : "Reading the prompt ...");
  if (isTurn) beginTurn(form.get("prompt"));
  else begin();
  try {
    const response = await fetch(isTurn ? "converse" : "continue", { method: "POST", body: form, signal: stream.signal });
    if (!response.ok) throw new Error(await response.text());
    await receive(response, isTurn ? turnHandlers : handlers);
  } catch (error) {
    if (error.name === "AbortError") setStatus("Stopped.");
    else setStatus(error.message, true);
  } finally {
    stream = null;
    byId("go").disabled = false;
    byId("stop").hidden = true;
    if (isTurn) endTurn();
  }
}

byId("form").addEventListener("submit", submit);
byId("stop").addEventListener("click", () => {
  stream?.abort();
  player?.stop();
  player = null;
});
byId("record").addEventListener("click", () =>
  record().catch((error) => (byId("recorded").textContent = `No recording: ${error.message}`)),
);
// A browser cannot point at a number that it refuses while it is folded away.
byId("form").addEventListener("invalid", (event) => event.target.closest("details")?.setAttribute("open", ""), true);
byId("file").addEventListener("change", showSource);
byId("sources").addEventListener("change", showSource);
byId("map").addEventListener("mousemove", describeUnit);
