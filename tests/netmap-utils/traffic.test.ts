// netmap's utils/tests 004-008 and 021-023, written afresh: sending and receiving on each kind of port. 024 needs a veth
// and is among the tests of network cards.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { receive, receiveNothing, send, withLab } from './functional.ts';

const FRAMES = { len: 274, fill: 'c', num: 5 };
/** Of several slots. */
const LONG = { len: 5000, fill: 'k', num: 3 };

for (const [number, what, persistent] of [
  ['004', 'ephemeral', false],
  ['005', 'persistent', true],
] as const) {
  test(`${number}: ${what} VALE ports: what is sent in extra buffers arrives at both others`, () =>
    withLab(async (lab, ctl) => {
      if (persistent) {
        for (const name of ['v0', 'v1', 'v2']) {
          await ctl.create(name, 'lab');
          await ctl.attach(`vale0:${name}`);
        }
      }
      const [v0, v1] = [await lab.open('vale0:v0'), await lab.open('vale0:v1')];
      const v2 = await lab.open('vale0:v2', { extraBufs: 12 });
      assert.equal(new Set(v2.extraBufs).size, 12);
      assert.ok(send(v2, FRAMES));
      receive(v0, FRAMES);
      receive(v1, FRAMES);
    }));
}

test('006: a pipe: what is sent in extra buffers arrives, and its buffers come back when the sender is gone', () =>
  withLab(async (lab) => {
    const receiver = await lab.open('netmap:pipeA{1@lab');
    const sender = await lab.open('netmap:pipeA}1', { extraBufs: 12 });
    const sent = sender.extraBufs.slice(0, FRAMES.num);
    assert.ok(send(sender, FRAMES));
    receive(receiver, FRAMES);
    const ring = receiver.rxRings[0]!;
    assert.deepEqual(
      sent,
      sent.map((_, i) => ring.bufIdx(i)),
      'without a copy',
    );
    await lab.close(sender);
    const again = await lab.open('netmap:pipeA}1', { extraBufs: 12 });
    assert.equal(again.extraBufs.length, 12);
    assert.ok(send(again, FRAMES));
    receive(receiver, FRAMES);
  }));

test('007: a learning bridge: an unknown address goes to all, a known one to its port only', () =>
  withLab(async (lab) => {
    const [v0, v1, v2] = [await lab.open('vale0:v0'), await lab.open('vale0:v1'), await lab.open('vale0:v2')];
    const mac = '02:11:22:33:44:55';
    const first = { len: 150, fill: 'd', num: 1, src: mac };
    assert.ok(send(v2, first));
    receive(v0, first);
    receive(v1, first);
    const answer = { len: 150, fill: 'd', num: 1, src: '02:00:00:00:00:98', dst: mac };
    assert.ok(send(v0, answer));
    receive(v2, answer);
    receiveNothing(v1);
  }));

test('008: a pipe whose receiver reads less than was sent keeps the rest for it, and takes no more than fits', () =>
  withLab(async (lab) => {
    const receiver = await lab.open('netmap:pipeA{1');
    const sender = await lab.open('netmap:pipeA}1');
    const ring = sender.txRings[0]!;
    const all = ring.space();
    assert.ok(send(sender, { len: 274, fill: 'h', num: 10 }));
    receive(receiver, { len: 274, fill: 'h', num: 7 });
    await lab.until((domains) => domains[0]!.ports.some((p) => p.rxRings[0]!.packets === 10));
    for (let i = 0; ring.space() !== all - 3 && i < 1000; i++) {
      sender.txsync();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    assert.equal(all - ring.space(), 10 - 7);
    assert.equal(send(sender, { len: 274, fill: 'h', num: ring.space() + 1 }), false);
  }));

for (const [number, what, persistent] of [
  ['021', 'ephemeral', false],
  ['022', 'persistent', true],
] as const) {
  test(`${number}: ${what} VALE ports: what one sends, the two others receive`, () =>
    withLab(async (lab, ctl) => {
      if (persistent) {
        for (const name of ['v0', 'v1', 'v2']) {
          await ctl.create(name);
          await ctl.attach(`vale0:${name}`);
        }
      }
      const [v0, v1, v2] = [await lab.open('vale0:v0'), await lab.open('vale0:v1'), await lab.open('vale0:v2')];
      for (const frames of [FRAMES, LONG]) {
        assert.ok(send(v2, frames));
        receive(v0, frames);
        receive(v1, frames);
        assert.ok(send(v0, frames));
        receive(v1, frames);
        receive(v2, frames);
      }
    }));
}

test('023: a pipe: what one end sends, the other receives', () =>
  withLab(async (lab) => {
    const [a, b] = [await lab.open('netmap:pipeA{1'), await lab.open('netmap:pipeA}1')];
    for (const frames of [FRAMES, LONG]) {
      assert.ok(send(b, frames));
      receive(a, frames);
      assert.ok(send(a, frames));
      receive(b, frames);
    }
  }));
