/**
 * Pipes against a naive model, on one region: two pipes in a chain, whose middle ends swap buffers; any mix of sending,
 * receiving, bad slots, chains, stops, and deaths of ends. Same frames in the same order, nothing dropped, no buffer lost or doubled (R10, R19).
 */
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { NS_BUF_CHANGED, NS_INDIRECT, NS_MOREFRAG, netmap_slot } from '../../src/abi/index.ts';
import type { RigRing } from '../unit/datapath/rig.ts';
import type { ModelPipe } from './pipe-model.ts';
import type { End } from './pipe-rig.ts';
import { BUF_SIZE, Chain, N } from './pipe-rig.ts';

const runs = process.env['PTNET_LONG'] === '1' ? 2500 : 150;

const end = fc.nat(3);
const step = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      op: fc.constant('send' as const),
      end,
      frags: fc.array(fc.integer({ min: 0, max: BUF_SIZE }), { minLength: 1, maxLength: 4 }),
      open: fc.oneof({ weight: 12, arbitrary: fc.constant(false) }, { weight: 3, arbitrary: fc.constant(true) }),
      spoil: fc.oneof(
        { weight: 16, arbitrary: fc.constant('' as const) },
        { weight: 1, arbitrary: fc.constantFrom('len' as const, 'indirect' as const, 'idx' as const) },
      ),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({ op: fc.constant('receive' as const), end, slots: fc.integer({ min: 1, max: N }) }),
  },
  {
    weight: 5,
    arbitrary: fc.record({
      op: fc.constant('forward' as const),
      slots: fc.integer({ min: 1, max: 4 }),
      publish: fc.constantFrom('both' as const, 'both' as const, 'tx' as const, 'rx' as const, 'none' as const),
    }),
  },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('swap' as const), end }) },
  { weight: 8, arbitrary: fc.record({ op: fc.constant('serve' as const) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('stop' as const), end }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('start' as const), end }) },
  {
    weight: 2,
    arbitrary: fc.record({
      op: fc.constant('die' as const),
      end,
      garbage: fc.array(fc.integer({ min: -1, max: 40 }), { maxLength: 6 }),
    }),
  },
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

function write(chain: Chain, ring: RigRing, way: ModelPipe, len: number, flags: number, idx?: number): void {
  const p = ring.slot(way.head % N);
  if (idx !== undefined) netmap_slot.set.buf_idx(chain.m, p, idx);
  netmap_slot.set.len(chain.m, p, len);
  netmap_slot.set.flags(chain.m, p, flags);
  const slot = way.at(way.head);
  Object.assign(slot, { idx: idx ?? slot.idx, len, flags });
  way.head++;
  ring.head = way.head % N;
}

function publishTx(e: End): void {
  e.out.published = e.out.head;
  e.tx.publish(e.out.head % N);
}

function publishRx(e: End): void {
  e.in.returned = e.in.taken;
  e.rx.publish(e.in.taken % N);
}

function play(chain: Chain, s: Step): void {
  if (s.op === 'serve') return chain.serve();
  if (s.op === 'forward') {
    // The middle: slave of the first pipe, master of the second.
    const [from, to] = [chain.ends[1]!, chain.ends[2]!];
    if (!from.running || !to.running) return;
    for (let i = 0; i < s.slots && from.in.taken < from.in.visible && to.out.room > 0; i++) {
      const [source, target] = [from.in.at(from.in.taken), to.out.at(to.out.head)];
      const spare = target.idx;
      // A chain goes on in pieces: each slot is a packet here.
      write(chain, to.tx, to.out, source.len, NS_BUF_CHANGED, source.idx);
      const p = from.rx.slot(from.in.taken % N);
      netmap_slot.set.buf_idx(chain.m, p, spare);
      netmap_slot.set.flags(chain.m, p, source.flags | NS_BUF_CHANGED);
      source.idx = spare;
      from.in.taken++;
    }
    // Whoever dies now has said half of it, or nothing.
    if (s.publish !== 'rx' && s.publish !== 'none') publishTx(to);
    if (s.publish !== 'tx' && s.publish !== 'none') publishRx(from);
    return;
  }
  const e = chain.ends[s.end]!;
  if (s.op === 'die') return chain.die(e, s.garbage);
  if (s.op === 'start') return chain.start(e);
  if (s.op === 'stop') return chain.stop(e);
  if (!e.running) return;
  if (s.op === 'receive') {
    e.in.taken = Math.min(e.in.taken + s.slots, e.in.visible);
    return publishRx(e);
  }
  if (s.op === 'swap') {
    if (e.out.room < 2) return;
    const [a, b] = [e.out.at(e.out.head), e.out.at(e.out.head + 1)];
    [a.idx, b.idx] = [b.idx, a.idx];
    netmap_slot.set.buf_idx(chain.m, e.tx.slot(e.out.head % N), a.idx);
    netmap_slot.set.buf_idx(chain.m, e.tx.slot((e.out.head + 1) % N), b.idx);
    return;
  }
  if (e.out.room < s.frags.length) return;
  for (const [i, len] of s.frags.entries()) {
    const more = i + 1 < s.frags.length || s.open ? NS_MOREFRAG : 0;
    const spoiled = i === 0 ? s.spoil : '';
    if (spoiled === 'idx') {
      // The lost buffer comes back by the record, if it is what was exchanged last at this slot.
      const slot = e.out.at(e.out.head);
      if (slot.idx === e.out.record[e.out.head % N]) {
        write(chain, e.tx, e.out, len, more, 0x8000_0001);
        continue;
      }
    }
    write(
      chain,
      e.tx,
      e.out,
      spoiled === 'len' ? BUF_SIZE + 1 : len,
      more | (spoiled === 'indirect' ? NS_INDIRECT : 0),
    );
  }
  publishTx(e);
}

for (const [where, start] of [
  ['low offsets', 4096],
  ['R3: offsets above 2 GiB', 0xa000_0000],
] as const) {
  describe(`pipes against a model, ${where}`, () => {
    it('R10, R19: same slots, same order, nothing dropped, every buffer once', () => {
      fc.assert(
        fc.property(fc.array(step, { minLength: 5, maxLength: 100, size: 'max' }), (steps) => {
          const chain = new Chain(start);
          for (const e of chain.ends) chain.start(e);
          let ok = false;
          try {
            for (const s of steps) {
              play(chain, s);
              if (s.op === 'serve' || s.op === 'die') chain.conserved();
            }
            ok = true;
          } finally {
            if (ok) chain.close();
            else chain.arena.unmap(0, chain.arena.bytes);
          }
        }),
        { numRuns: runs },
      );
    });
  });
}
