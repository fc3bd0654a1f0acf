/**
 * An end of a TCP connection, as a process in a network namespace: the counterpart of tests/e2e/guest/tcp-*.
 *   receive PORT               says "ready", accepts one connection, reads it to its end, prints the MD5 of what came
 *   send ADDRESS PORT BYTES    sends random bytes, prints their MD5
 */
import { createHash, randomBytes } from 'node:crypto';
import { connect, createServer } from 'node:net';

const [command, ...args] = process.argv.slice(2);
if (command === 'receive') {
  const server = createServer((socket) => {
    const hash = createHash('md5');
    socket.on('data', (bytes) => hash.update(bytes));
    socket.on('end', () => {
      process.stdout.write(`${hash.digest('hex')}\n`);
      server.close();
    });
  });
  server.listen(Number(args[0]), '0.0.0.0', () => process.stdout.write('ready\n'));
} else {
  const [address, port, bytes] = args as [string, string, string];
  const data = randomBytes(Number(bytes));
  process.stdout.write(`${createHash('md5').update(data).digest('hex')}\n`);
  connect({ host: address, port: Number(port) }, function (this: import('node:net').Socket) {
    this.end(data);
  });
}
