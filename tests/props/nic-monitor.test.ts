/**
 * Zero-copy monitors of an interface's port, its user's own or one of a switch, any mix of frames both ways, monitors that read, stop or die, and the death of
 * the port's user: the kernel never gets a buffer that somebody else has, and no frame is touched on its way (R5, R10, R19).
 */
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { STARTS } from '../unit/datapath/rig.ts';
import { MONITORS, N, NicRig } from './nic-rig.ts';

const runs = process.env['PTNET_LONG'] === '1' ? 2500 : 150;

const count = fc.integer({ min: 1, max: N });
const monitor = fc.nat(MONITORS - 1);
const step = fc.oneof(
  { weight: 6, arbitrary: fc.record({ op: fc.constant('arrive' as const), which: fc.nat(N) }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('read' as const), count }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('send' as const), count }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('complete' as const), count }) },
  { weight: 4, arbitrary: fc.record({ op: fc.constant('watch' as const), monitor, count }) },
  { weight: 6, arbitrary: fc.record({ op: fc.constant('serve' as const) }) },
  {
    weight: 2,
    arbitrary: fc.record({
      op: fc.constant('die' as const),
      // The port's user, or a monitor.
      who: fc.nat(MONITORS),
      garbage: fc.array(fc.nat(100), { maxLength: 2 * N }),
    }),
  },
);
const scribble = fc.record({
  op: fc.constant('scribble' as const),
  tx: fc.boolean(),
  slot: fc.nat(N - 1),
  word: fc.oneof(
    fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    // Somebody's buffer, with a length that is one.
    fc.nat(8 * N).map((idx) => BigInt(idx) | (60n << 32n)),
  ),
});
type Step =
  | (typeof step extends fc.Arbitrary<infer T> ? T : never)
  | (typeof scribble extends fc.Arbitrary<infer T> ? T : never);

function play(rig: NicRig, s: Step): void {
  if (s.op === 'arrive') rig.arrive(s.which);
  else if (s.op === 'read') rig.read(s.count);
  else if (s.op === 'send') rig.send(s.count);
  else if (s.op === 'complete') rig.complete(s.count);
  else if (s.op === 'watch') rig.watch(rig.monitors[s.monitor]!, s.count);
  else if (s.op === 'serve') rig.serve();
  else if (s.op === 'scribble') rig.scribble(s.tx, s.slot, s.word);
  else {
    rig.die(rig.users[s.who]!, s.garbage);
    rig.serve();
  }
}

function playAll(start: number, hosted: boolean, steps: readonly Step[]): void {
  const rig = new NicRig(start, hosted);
  let ok = false;
  try {
    for (const s of steps) play(rig, s);
    rig.serve();
    ok = true;
  } finally {
    if (ok) rig.close();
    else rig.abandon();
  }
}

const many = <T>(one: fc.Arbitrary<T>): fc.Arbitrary<T[]> =>
  fc.array(one, { minLength: 5, maxLength: 100, size: 'max' });
const ports = [
  ['an interface', false],
  ['an interface in a switch', true],
] as const;

for (const [where, start] of STARTS) {
  for (const [what, hosted] of ports) {
    describe(`zero-copy monitors of ${what} against a kernel, ${where}`, () => {
      it('R10, R19: every buffer has one owner, the kernel or a slot; frames arrive and leave as they were', () => {
        fc.assert(
          fc.property(many(step), (steps) => playAll(start, hosted, steps)),
          { numRuns: runs },
        );
      });

      it('R5, R19: whatever is written into its slots, the kernel gets only buffers, and all are back in the end', () => {
        const any = fc.oneof({ weight: 4, arbitrary: step }, { weight: 1, arbitrary: scribble });
        fc.assert(
          fc.property(many(any), (steps) => playAll(start, hosted, steps)),
          { numRuns: runs },
        );
      });
    });
  }
}
