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
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

function play(rig: NicRig, s: Step): void {
  if (s.op === 'arrive') rig.arrive(s.which);
  else if (s.op === 'read') rig.read(s.count);
  else if (s.op === 'send') rig.send(s.count);
  else if (s.op === 'complete') rig.complete(s.count);
  else if (s.op === 'watch') rig.watch(rig.monitors[s.monitor]!, s.count);
  else if (s.op === 'serve') rig.serve();
  else {
    rig.die(rig.users[s.who]!, s.garbage);
    rig.serve();
  }
}

for (const [where, start] of STARTS) {
  for (const [what, hosted] of [
    ['an interface', false],
    ['an interface in a switch', true],
  ] as const)
    describe(`zero-copy monitors of ${what} against a kernel, ${where}`, () => {
      it('R10, R19: every buffer has one owner, the kernel or a slot; frames arrive and leave as they were', () => {
        fc.assert(
          fc.property(fc.array(step, { minLength: 5, maxLength: 100, size: 'max' }), (steps) => {
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
          }),
          { numRuns: runs },
        );
      });
    });
}
