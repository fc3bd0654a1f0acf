/** bridge's way of moving slots between two ports in plain memory, each in a region of its own or both in one; its options. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { NS_MOREFRAG } from '../../../src/api/index.ts';
import { Moved, portsMove } from '../../../src/cli/bridge/move.ts';
import { parseBridge } from '../../../src/cli/bridge/options.ts';
import { FakePort } from './fake-port.ts';

/** A packet's slots as its lengths; a slot's bytes are its number. */
function receive(port: FakePort, lengths: readonly number[], value: number): void {
  lengths.forEach((length, i) =>
    port.receive(new Uint8Array(length).fill(value), i < lengths.length - 1 ? NS_MOREFRAG : 0),
  );
}

test('packets are copied to the other port, in order, with their flags', () => {
  const [a, b] = [new FakePort('', 16), new FakePort('', 16)];
  receive(a, [60], 1);
  receive(a, [2048, 100], 2);
  receive(a, [1514], 3);
  const moved = new Moved();
  portsMove(a, b, 1024, false, moved);
  b.txsync();
  assert.deepEqual(
    b.sent.map(({ bytes, flags }) => [bytes.length, bytes[0], bytes.at(-1), flags & NS_MOREFRAG]),
    [
      [60, 1, 1, 0],
      [2048, 2, 2, NS_MOREFRAG],
      [100, 2, 2, 0],
      [1514, 3, 3, 0],
    ],
  );
  assert.deepEqual([moved.packets, moved.bytes, moved.bad], [3, 60 + 2048 + 100 + 1514, 0]);
  assert.equal(a.rxRings[0]!.space(), 0);
});

test('inside one region buffers are exchanged, none is lost or doubled', () => {
  const port = new FakePort('', 8);
  const [rx, tx] = [port.rxRings[0]!, port.txRings[0]!];
  const buffers = (): number[] =>
    [rx, tx].flatMap((ring) => Array.from({ length: 8 }, (_, i) => ring.bufIdx(i))).sort((x, y) => x - y);
  const before = buffers();
  for (let n = 0; n < 30; n++) {
    receive(port, [60 + n], n);
    const full = rx.bufIdx(rx.head);
    const at = tx.head;
    portsMove(port, port, 1024, true, new Moved());
    assert.equal(tx.bufIdx(at), full, 'the buffer went along');
    port.txsync();
    assert.deepEqual([port.sent.at(-1)!.bytes.length, port.sent.at(-1)!.bytes[0]], [60 + n, n]);
    assert.deepEqual(buffers(), before);
  }
});

test('a packet of several slots is never cut, whatever room and burst', () => {
  const packet = fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 5 });
  fc.assert(
    fc.property(
      fc.array(packet, { maxLength: 20 }),
      fc.integer({ min: 1, max: 10 }),
      fc.nat(7),
      (packets, burst, used) => {
        const [a, b] = [new FakePort('', 128), new FakePort('', 8)];
        packets.forEach((lengths, i) => receive(a, lengths, i));
        const tx = b.txRings[0]!;
        const seen: number[] = [];
        for (let turn = 0; turn < 100 && a.rxRings[0]!.space() > 0; turn++) {
          // The host has not taken `used` slots yet.
          if (turn === 0) tx.tail = 7 - used;
          const from = tx.head;
          portsMove(a, b, burst, false, new Moved());
          if (tx.head !== from) assert.equal(tx.flags((tx.head + 7) % 8) & NS_MOREFRAG, 0, 'ends with a whole packet');
          else assert.equal(tx.cur, tx.tail, 'waits for more room');
          tx.tail = (from + 7) % 8;
          b.txsync();
          tx.cur = tx.head;
        }
        for (const { bytes } of b.sent) seen.push(bytes.length);
        assert.deepEqual(seen, packets.flat());
      },
    ),
  );
});

test('a packet longer than the ring it is to go into holds nobody up: it is dropped, and counted', () => {
  const [a, b] = [new FakePort('', 16), new FakePort('', 4)];
  receive(a, [60], 1);
  receive(a, [2048, 2048, 2048, 100], 2);
  receive(a, [2048, 100, 100], 3);
  const moved = new Moved();
  for (let turn = 0; turn < 6; turn++) {
    portsMove(a, b, 1024, false, moved);
    b.txsync();
  }
  assert.deepEqual(
    b.sent.map(({ bytes }) => bytes[0]),
    [1, 3, 3, 3],
  );
  assert.deepEqual([moved.packets, moved.tooLong, a.rxRings[0]!.space()], [2, 1, 0]);
});

test('a slot longer than its buffer goes out empty, and is counted', () => {
  const [a, b] = [new FakePort('', 8), new FakePort('', 8)];
  receive(a, [60], 1);
  a.rxRings[0]!.setLen(0, 3000);
  const moved = new Moved();
  portsMove(a, b, 10, false, moved);
  b.txsync();
  assert.deepEqual([b.sent[0]!.bytes.length, moved.bad], [0, 1]);
});

test('options: -i twice or two words; one port needs -L', () => {
  const job = parseBridge({ i: ['vale0:a', 'vale1:a'], c: true }, []);
  assert.deepEqual([job.a, job.b, job.burst, job.zeroCopy, job.loopback], ['vale0:a', 'vale1:a', 1024, false, false]);
  const words = parseBridge({}, ['vale0:a', 'vale1:a', '7']);
  assert.deepEqual([words.a, words.b, words.burst, words.zeroCopy], ['vale0:a', 'vale1:a', 7, true]);
  assert.equal(parseBridge({ i: ['vale0:a'], L: true }, []).loopback, true);
  const host = parseBridge({ i: ['netmap:eth1@lab'] }, []);
  assert.deepEqual([host.a, host.b], ['netmap:eth1^@lab', 'netmap:eth1@lab']);
  for (const [flags, pattern] of [
    [{}, /-i PORT is missing/],
    [{ i: ['vale0:a'] }, /needs two ports: .*-L/],
    [{ i: ['netmap:x{1'] }, /needs two ports: .*-L/],
    [{ i: ['vale0:a', 'vale0:b', 'vale0:c'] }, /at most two/],
    [{ i: ['vale0:a', 'vale0:b'], L: true }, /-L is for one port/],
    [{ i: ['vale0:a', 'vale0:b'], b: '0' }, /-b 0: must be/],
  ] as const) {
    assert.throws(() => parseBridge({ ...flags, i: [...('i' in flags ? flags.i : [])] }, []), pattern);
  }
});
