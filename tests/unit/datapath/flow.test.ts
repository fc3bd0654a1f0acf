/** Which ring of a receiver with several: by the sender's ring, or by flow if the sender has one only (docs/vale.md). */
import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import { flowRing } from '../../props/vale-model.ts';
import { BROADCAST, frame, mac, Rig } from './rig.ts';

interface Flow {
  readonly v6?: boolean;
  readonly vlan?: boolean;
  readonly proto?: number;
  readonly from: number;
  readonly to: number;
  readonly sport: number;
  readonly dport: number;
  readonly fragment?: boolean;
}

/** A frame from mac(1) to mac(2). @param n goes where it says nothing about the flow */
function packet(
  { v6 = false, vlan = false, proto = 6, from, to, sport, dport, fragment = false }: Flow,
  n = 0,
): Uint8Array {
  const f = frame(mac(2), mac(1), 120, n);
  const l3 = vlan ? 18 : 14;
  if (vlan) f.set([0x81, 0, 0, 7], 12);
  f.set(v6 ? [0x86, 0xdd] : [8, 0], l3 - 2);
  if (v6) {
    f.set([0x60, 0, 0, 0, 0, 66, proto, 64], l3);
    for (const [at, host] of [
      [8, from],
      [24, to],
    ] as const) {
      f.fill(0, l3 + at, l3 + at + 16);
      f.set([0x20, 1], l3 + at);
      f[l3 + at + 15] = host;
    }
  } else {
    f.set([0x45, 0, 0, 86, n & 255, 1, fragment ? 0x20 : 0x40, 0, 64, proto, 0, 0, 10, 0, 0, from, 10, 0, 0, to], l3);
  }
  const l4 = l3 + (v6 ? 40 : 20);
  f.set([sport >> 8, sport & 255, dport >> 8, dport & 255], l4);
  return f;
}

describe('VALE: the ring of a flow', () => {
  const rig = new Rig();
  const a = rig.addPort({ txSlots: 1024 });
  const b = rig.addPort({ rxRings: 4, rxSlots: 1024 });
  const two = rig.addPort({ txRings: 2 });
  after(() => rig.close());
  b.tx[0]!.put(frame(BROADCAST, mac(2)));
  b.tx[0]!.publish();
  rig.serve();
  for (const p of [a, b, two]) for (const ring of p.rx) ring.receive();

  /** Sends packets; returns for each ring which of them arrived there. */
  const send = (packets: readonly Uint8Array[], ring = a.tx[0]!): number[][] => {
    for (const bytes of packets) ring.put(bytes);
    ring.publish();
    rig.serve();
    return b.rx.map((rx) => rx.receive().map(([got]) => packets.findIndex((sent) => Buffer.compare(sent, got!) === 0)));
  };
  const ringOf = (bytes: Uint8Array): number => send([bytes]).findIndex((got) => got.length === 1);
  const flow = { from: 1, to: 2, sport: 4000, dport: 80 };

  it('all packets of a flow go to one ring, in order', () => {
    const packets = Array.from({ length: 200 }, (_, n) => packet(flow, n));
    const got = send(packets).filter((ring) => ring.length > 0);
    assert.deepEqual(got, [packets.map((_, i) => i)]);
  });

  it('flows spread over all rings, each where the model says, both directions together', () => {
    const seen = new Map<number, number>();
    for (const shape of [{}, { v6: true }, { vlan: true }, { v6: true, vlan: true }, { proto: 17 }, { proto: 1 }]) {
      for (let i = 0; i < 32; i++) {
        const there = { ...shape, from: i, to: 200 - i, sport: 1000 + 7 * i, dport: 443 };
        const back = { ...shape, from: there.to, to: there.from, sport: there.dport, dport: there.sport };
        const ring = ringOf(packet(there));
        assert.equal(ring, flowRing(packet(there), 4));
        assert.equal(ring, ringOf(packet(back)));
        seen.set(ring, (seen.get(ring) ?? 0) + 1);
      }
    }
    assert.equal(seen.size, 4);
    for (const n of seen.values()) assert.ok(n > 192 / 8, `${[...seen]}`);
  });

  it('fragments of a datagram stay together: no ports are looked for in them', () => {
    const first = packet({ ...flow, proto: 17, fragment: true });
    const other = packet({ ...flow, proto: 17, fragment: true, sport: 9, dport: 9 });
    assert.equal(ringOf(first), ringOf(other));
  });

  it('a sender with several rings decides itself', () => {
    for (const i of [0, 1]) {
      const packets = Array.from({ length: 8 }, (_, n) => packet({ ...flow, sport: n }, n));
      assert.deepEqual(
        send(packets, two.tx[i]!).map((ring) => ring.length),
        [0, 1, 2, 3].map((r) => (r === i ? 8 : 0)),
      );
    }
  });
});
