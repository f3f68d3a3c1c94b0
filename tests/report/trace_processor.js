// Perfetto's trace processor in Node: its RPC messages come on stdin and go on stdout.
//
// The folder named is a copy of ui.perfetto.dev, which runs this very build in a web worker. The worker's script gets
// a realm of its own here, with what it asks of a browser, and no sign of Node.
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const folder = process.argv[2];

class XMLHttpRequest {
  open(method, address) {
    this.name = path.basename(address);
  }
  send() {
    this.response = fs.readFileSync(path.join(folder, this.name));
  }
}

const worker = vm.createContext({
  XMLHttpRequest, URL, TextDecoder, TextEncoder, performance, crypto, setTimeout,
  console: new console.Console(process.stderr),
  WorkerGlobalScope: Object,
  location: { href: "http://localhost/" },
});
vm.runInContext("self = globalThis", worker);
vm.runInContext(fs.readFileSync(path.join(folder, "engine_bundle.js"), "utf8"), worker);

const port = { postMessage: (reply) => process.stdout.write(reply) };
worker.onmessage({ data: port });
const Bytes = vm.runInContext("Uint8Array", worker);
process.stdin.on("data", (chunk) => port.onmessage({ data: new Bytes(chunk) }));
