/** The ring of an interface that can go no further lets its thread sleep: on a kernel that the test plays (tests/props/nic-rig.ts). */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { N, NicRig } from '../../props/nic-rig.ts';
import { STARTS } from './rig.ts';

for (const [where, start] of STARTS) {
  describe(`rings of an interface that wait, ${where}`, () => {
    it('R12: a frame that does not fit into what is left of the ring waits until its user has released some', () => {
      const rig = new NicRig(start);
      for (let i = 0; i < N - 2; i++) rig.arrive(0);
      rig.arrive(0, 2);
      rig.serve(); // and nothing is left to do, it sees
      assert.equal(rig.card.rx.avail, N - 2);
      rig.read(1);
      assert.equal(rig.dp.look(rig.domain), 1);
      rig.serve();
      rig.read(N - 1);
      rig.serve();
      assert.equal(rig.card.rx.count('packets'), N - 1);
      rig.close();
    });

    for (const [what, hosted] of [
      ['the port of an interface', false],
      ['an interface in a switch', true],
    ] as const) {
      it(`R7: ${what}: a bad packet behind frames that the card has not sent waits for these, and is passed over then`, () => {
        const rig = new NicRig(start, hosted);
        rig.send(1);
        rig.serve();
        rig.scribble(!hosted, 1, 0n);
        rig.send(2);
        rig.serve();
        const sends = hosted ? rig.card.rx : rig.card.tx;
        assert.equal(sends.count('drop_bad'), 0);
        rig.complete(1);
        assert.equal(rig.dp.look(rig.domain), 1);
        rig.serve();
        rig.complete(1);
        rig.serve();
        assert.equal(sends.count('drop_bad'), 1);
        rig.close();
      });
    }
  });
}
