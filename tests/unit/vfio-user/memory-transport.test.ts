/** The transport without sockets against the kernel’s: the same sends and receives give the same results. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { socketPair, SysError } from '../../../src/os/index.ts';
import { memoryTransportPair, socketTransport, type Transport } from '../../../src/vfio-user/index.ts';
import { closeFd, eventfd, openFds, turn } from './support.ts';

type Op =
  | { readonly op: 'send'; readonly bytes: number; readonly fds: number }
  | { readonly op: 'receive'; readonly bytes: number }
  | { readonly op: 'close' };

const op: fc.Arbitrary<Op> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({ op: fc.constant('send' as const), bytes: fc.integer({ min: 1, max: 40 }), fds: fc.nat(3) }),
  },
  { weight: 8, arbitrary: fc.record({ op: fc.constant('receive' as const), bytes: fc.integer({ min: 1, max: 50 }) }) },
  { weight: 1, arbitrary: fc.constant({ op: 'close' as const }) },
);

/** Everything that one end sees while the other sends. */
function play([a, b]: readonly [Transport, Transport], ops: readonly Op[]): unknown[] {
  const fd = eventfd();
  let next = 0;
  let closed = false;
  const out = ops.map((o) => {
    if (o.op === 'close') {
      a.close();
      closed = true;
      return 'closed';
    }
    if (o.op === 'send') {
      if (closed) return 'closed';
      const bytes = new Uint8Array(o.bytes).map(() => next++ & 0xff);
      return a.send(
        bytes,
        Array.from({ length: o.fds }, () => fd),
      );
    }
    const into = new Uint8Array(o.bytes);
    const got = b.receive(into);
    got.fds.forEach(closeFd);
    return { ...got, fds: got.fds.length, data: [...into] };
  });
  a.close();
  assert.throws(
    () => b.send(Uint8Array.of(1)),
    (e) => e instanceof SysError && e.code === 'EPIPE',
  );
  b.close();
  closeFd(fd);
  return out;
}

test('a memory transport behaves as a UNIX socket does: bytes, descriptors, ends, truncation', () => {
  fc.assert(
    fc.property(fc.array(op, { maxLength: 40 }), (ops) => {
      const before = openFds();
      const [a, b] = socketPair();
      const kernel = play([socketTransport(a, 2), socketTransport(b, 2)], ops);
      const memory = play(memoryTransportPair({ maxFds: 2 }), ops);
      assert.deepEqual(memory, kernel);
      assert.equal(openFds(), before);
    }),
    { numRuns: 300 },
  );
});

test('a full memory transport takes nothing, and says when there is room again', async () => {
  const [a, b] = memoryTransportPair({ capacity: 10 });
  assert.equal(a.send(new Uint8Array(8)), 8);
  assert.equal(a.send(new Uint8Array(8)), 2);
  assert.equal(a.send(new Uint8Array(8)), 0);
  let writable = 0;
  const w = a.watch((ready) => {
    if (ready.writable) writable++;
    w.update({ readable: false, writable: false });
  });
  w.update({ readable: true, writable: true });
  await turn();
  await turn();
  assert.equal(writable, 0);
  b.receive(new Uint8Array(3));
  await turn();
  await turn();
  assert.equal(writable, 1);
  w.close();
  a.close();
  b.close();
});
