"use strict";

// Conversations with a model that answers. The server keeps the turns; page.js sends the form and plays the audio.

const newName = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join("-");

let conversation = newName();
let numAnswers = 0; // of this conversation
let turn = null; // the turn of the user and the answer to it that is under way: {asked, answer, words, isDone}

function offerConversations() {
  byId("modes").hidden = about.answers.length === 0;
  for (const input of document.querySelectorAll('[name="answer"]')) input.disabled = !about.answers.includes(input.value);
  if (about.answers.length === 0) return;
  choose("answer", about.answers[0]);
  if (about.answer) choose("answer", about.answer);
  choose("mode", "converse");
  showMode();
}

function showMode() {
  const isTurn = chosen("mode") === "converse";
  byId("conversation").hidden = byId("forms").hidden = !isTurn;
  byId("whole").hidden = byId("targets").hidden = isTurn;
  if (isTurn) byId("result").hidden = true;
  byId("prompt-legend").textContent = isTurn ? "Your turn" : "Prompt";
  byId("go").textContent = isTurn ? "Send" : "Continue";
  byId("text").setAttribute("aria-label", isTurn ? "Your turn" : "Text prompt");
}

function turnSettings() {
  const found = {
    answer: chosen("answer"),
    conversation,
    is_first: numAnswers === 0,
    system: byId("system").value,
  };
  for (const key of ["temperature", "top_k", "top_p", "seed", "seconds", "length"]) found[key] = byId(key).valueAsNumber;
  return found;
}

function addTo(parent, name, className, text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  parent.append(element);
  return element;
}

function addAudio(parent, blob) {
  const element = addTo(parent, "audio", "");
  element.controls = true;
  setAudio(element, blob);
}

function beginTurn(content) {
  const asked = addTo(byId("turns"), "li", "user");
  if (typeof content === "string") addTo(asked, "p", "", content);
  else addAudio(asked, content);
  turn = { asked, answer: addTo(byId("turns"), "li", "assistant"), words: null, isDone: false };
  byId("system").disabled = true;
  player?.stop();
  player = chosen("answer") !== "text" && about.speaks ? new Player(about.sample_rate) : null;
}

const turnHandlers = {
  waiting: () => setStatus("Waiting for another continuation ..."),
  error: (event) => setStatus(event.message, true),
  part: (event) => {
    setStatus("Answering ...");
    turn.words = addTo(turn.answer, "p", { heard: "heard muted", text: "text", speech: "units" }[event.part]);
  },
  position: (event) => turn.words.append(event.unit === undefined ? event.text : `${event.unit} `),
  audio: (event) => player?.add(event.pcm),
  done: (event) => {
    turn.isDone = true;
    numAnswers += 1;
    setStatus("");
    if (event.wav) {
      addAudio(turn.answer, new Blob([bytesOf(event.wav)], { type: "audio/wav" }));
      turn.answer.querySelectorAll(".units").forEach((units) => units.remove());
    }
    if (event.remark) addTo(turn.answer, "p", "muted", event.remark);
    if (event.left_out) addTo(turn.answer, "p", "muted", `${event.left_out} earlier turns no longer fit into the context`);
    if (chosen("source") === "text") byId("text").value = "";
  },
};

// A turn without an answer does not belong to the conversation.
function endTurn() {
  if (!turn.isDone) {
    turn.asked.remove();
    turn.answer.remove();
    byId("system").disabled = numAnswers > 0;
  }
  turn = null;
}

function beginConversation() {
  stream?.abort();
  player?.stop();
  player = null;
  conversation = newName();
  numAnswers = 0;
  byId("turns").replaceChildren();
  byId("system").disabled = false;
  setStatus("");
}

byId("modes").addEventListener("change", showMode);
byId("new").addEventListener("click", beginConversation);
load().catch((error) => (byId("about").textContent = `The model cannot be reached: ${error.message}`));
