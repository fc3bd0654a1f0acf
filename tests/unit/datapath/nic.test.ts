/** The ring of an interface that can go no further lets its thread sleep: on a kernel that the test plays (tests/props/nic-rig.ts). */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { NS_MOREFRAG, nic_queue, nm_csb_ktoa } from '../../../src/abi/index.ts';
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

    it('R12: what the card has sent after the ring was stopped is looked at: nothing is on its way any more', () => {
      const rig = new NicRig(start);
      rig.send(1);
      rig.serve();
      rig.dp.krStop(rig.card.tx.kr);
      rig.complete(1);
      assert.equal(rig.dp.look(rig.domain), 1);
      rig.dp.serve(rig.domain);
      assert.equal(nic_queue.get.in_flight(rig.m, rig.queue), 0);
      assert.equal(rig.dp.look(rig.domain), 0);
      rig.start(rig.card);
      rig.serve();
      rig.close();
    });

    it('R11: where the longest frame may have to wait for what its user has read, the user is to kick when he releases it', () => {
      const rig = new NicRig(start);
      const { rx, registration } = rig.card;
      rig.dp.monForget(registration.port); // they would have it armed always
      rig.scribble(true, 0, 0n); // and none is shown what it reads
      nic_queue.set.max_pieces(rig.m, rig.queue, N / 2);
      const armed = (): number => {
        rig.dp.arm(rig.domain);
        return nm_csb_ktoa.get.kern_need_kick(rig.m, rx.ktoa);
      };
      assert.equal(armed(), 0);
      for (let i = 0; i < N / 2; i++) rig.arrive(0);
      rig.serve();
      assert.equal(armed(), 1);
      rig.read(1);
      rig.serve();
      assert.equal(armed(), 0);
      rig.close();
    });

    it('what is sent to an interface that is gone is counted by packets', () => {
      const rig = new NicRig(start);
      const { tx } = rig.card;
      rig.dp.nicDown(rig.queue);
      for (const flags of [0, NS_MOREFRAG, 0, NS_MOREFRAG]) tx.put(new Uint8Array(60), flags);
      tx.publish();
      rig.dp.serve(rig.domain);
      assert.deepEqual([tx.count('drop_stopped'), tx.count('slots')], [3, 4]);
      assert.equal(tx.avail, N - 1);
      rig.close();
    });

    for (const [what, hosted] of [
      ['the port of an interface', false],
      ['an interface in a switch', true],
    ] as const) {
      it(`${what}: a frame that takes every buffer of its ring is dropped, and those after it arrive`, () => {
        const rig = new NicRig(start, hosted);
        rig.arrive(0, N);
        assert.equal(rig.dp.look(rig.domain), 1);
        rig.serve();
        assert.equal((hosted ? rig.card.tx : rig.card.rx).count('drop_full'), 1);
        for (let i = 0; i < 3 * N; i++) {
          rig.arrive(0, i % 3 === 0 ? N - 1 : 1);
          rig.serve();
          rig.read(N);
          rig.serve();
        }
        assert.equal((hosted ? rig.card.tx : rig.card.rx).count('packets'), 3 * N);
        rig.close();
      });

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
