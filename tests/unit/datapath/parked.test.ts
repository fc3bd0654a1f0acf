/** Many ports, few of them busy: rings that are idle for long are parked, and found again. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { domain } from '../../../src/abi/index.ts';
import { frame, learnedRig, mac, type Rig } from './rig.ts';

/** Turns after which rings that move nothing are surely parked: one of them a turn. */
const LONG = 400;
const PORTS = 40;

const withPorts = (ports: number): Rig =>
  learnedRig(
    4096,
    Array.from({ length: ports }, () => ({})),
  );
const polled = (rig: Rig): number => domain.get.num_tx_polled(rig.m, rig.domain);
const running = (rig: Rig): number => domain.get.num_tx_running(rig.m, rig.domain);
const idle = (rig: Rig): void => {
  for (let i = 0; i < LONG; i++) rig.serve();
};
/** Port i sends a frame to port j. */
function send(rig: Rig, i: number, j: number): void {
  const tx = rig.ports[i]!.tx[0]!;
  tx.put(frame(mac(j + 1), mac(i + 1)));
  tx.publish();
}

test('R8: beside a ring that always has something, a parked one is served within a few turns, and every turn from then on', () => {
  const rig = withPorts(PORTS);
  idle(rig);
  assert.equal(polled(rig), 0);
  send(rig, 0, 3);
  rig.dp.look(rig.domain);
  assert.equal(polled(rig), 1);
  for (const parked of [1, 17, PORTS - 1]) {
    const rx = rig.ports[2]!.rx[0]!;
    send(rig, parked, 2);
    let turns = 0;
    while (rx.avail === 0) {
      assert.ok(++turns <= PORTS / 4, `${turns} turns`);
      send(rig, 0, 3);
      assert.ok(rig.serve() > 0);
      rig.ports[3]!.rx[0]!.receive();
    }
    rx.receive();
    for (let i = 0; i < 3; i++) {
      send(rig, parked, 2);
      rig.serve();
      assert.equal(rx.receive().length, 1);
    }
  }
  rig.close();
});

test('R12: the look before a sleep is at parked rings too, and what it finds is served by the next turn', () => {
  const rig = withPorts(PORTS);
  for (const parked of [0, 21, PORTS - 1]) {
    idle(rig);
    assert.equal(polled(rig), 0);
    rig.dp.arm(rig.domain);
    assert.equal(rig.dp.look(rig.domain), 0);
    send(rig, parked, 2);
    assert.equal(rig.dp.look(rig.domain), 1);
    assert.equal(rig.serve(), 1);
    assert.equal(rig.ports[2]!.rx[0]!.receive().length, 1);
  }
  rig.close();
});

test('R7: a parked ring with a bad head is counted once and parked again; it is served when its head is valid', () => {
  const rig = withPorts(PORTS);
  const tx = rig.ports[5]!.tx[0]!;
  idle(rig);
  tx.publish(77_777);
  idle(rig);
  assert.equal(tx.count('repairs'), 1);
  assert.equal(polled(rig), 0);
  send(rig, 5, 2);
  idle(rig);
  assert.equal(rig.ports[2]!.rx[0]!.receive().length, 1);
  rig.close();
});

test('rings that start, stop, idle and send in any order: the lists stay whole, and every frame arrives', () => {
  const PEERS = 12;
  const step = fc.oneof(
    fc.record({ op: fc.constant('send' as const), i: fc.nat(PEERS - 2) }),
    fc.record({ op: fc.constantFrom('stop' as const, 'start' as const), i: fc.nat(PEERS - 2) }),
    fc.record({ op: fc.constantFrom('idle' as const, 'turn' as const, 'look' as const), i: fc.constant(0) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const rig = withPorts(PEERS);
      const sink = rig.ports[PEERS - 1]!;
      const stopped = new Set<number>();
      let sent = 0;
      let received = 0;
      for (const { op, i } of steps) {
        const tx = rig.ports[i]!.tx[0]!;
        if (op === 'idle') idle(rig);
        else if (op === 'turn') rig.serve();
        else if (op === 'look') rig.dp.look(rig.domain);
        else if (op === 'stop') {
          // The last sync takes what is pending.
          rig.dp.krStop(tx.kr);
          stopped.add(i);
        } else if (op === 'start') {
          if (stopped.delete(i)) rig.dp.krStart(tx.kr);
        } else if (!stopped.has(i) && tx.avail > 0) {
          send(rig, i, PEERS - 1);
          sent++;
        }
        received += sink.rx[0]!.receive().length;
        assert.equal(running(rig), PEERS - stopped.size);
        assert.ok(polled(rig) <= running(rig));
      }
      for (let turn = 0; turn < PEERS; turn++) {
        rig.serve();
        received += sink.rx[0]!.receive().length;
      }
      assert.equal(received, sent);
      rig.close();
    }),
    { numRuns: 40 },
  );
});
