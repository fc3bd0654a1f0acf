/**
 * An HTTP server and client for a file that exists nowhere: bytes of a fixed pseudo-random stream. Run in a host.
 * `server`: prints its address line, serves /N (N bytes). `client URL N`: fetches, prints the sha256. `hash N`: the
 * sha256 that is right.
 */
import { createHash } from 'node:crypto';
import { createServer, get } from 'node:http';
import { pipeline, Readable } from 'node:stream';

const CHUNK = 2 ** 20;

/** The file, in chunks. */
function* file(bytes: number): Generator<Uint8Array> {
  const words = new Uint32Array(CHUNK / 4);
  let x = 2463534242;
  for (let left = bytes; left > 0; left -= CHUNK) {
    // xorshift32: different in every chunk, the same in every run
    for (let i = 0; i < words.length; i++) {
      x ^= x << 13;
      x ^= x >>> 17;
      x ^= x << 5;
      words[i] = x;
    }
    yield new Uint8Array(words.buffer.slice(0, Math.min(left, CHUNK)));
  }
}

const [command, ...args] = process.argv.slice(2);
if (command === 'server') {
  const server = createServer((request, response) => {
    const bytes = Number(request.url!.slice(1));
    response.writeHead(200, { 'content-length': bytes });
    pipeline(Readable.from(file(bytes)), response, () => undefined);
  });
  server.listen(8080, '::', () => process.stdout.write('ready\n'));
} else if (command === 'client') {
  get(args[0]!, (response) => {
    const hash = createHash('sha256');
    response.on('data', (chunk: Buffer) => hash.update(chunk));
    response.on('end', () => process.stdout.write(`${hash.digest('hex')}\n`));
  });
} else {
  const hash = createHash('sha256');
  for (const chunk of file(Number(args[0]))) hash.update(chunk);
  process.stdout.write(`${hash.digest('hex')}\n`);
}
