/** VALE between mock guests: what goes where, and how slots look when they arrive. */
import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import type { RigPortOptions } from './rig.ts';
import { BROADCAST, frame, mac, Rig } from './rig.ts';

/** R3: everything below runs with low and with high arena offsets. */
for (const [where, start] of [
  ['low offsets', 4096],
  ['R3: offsets above 2 GiB', 0xa000_0000],
] as const) {
  describe(`VALE, ${where}`, () => {
    const rigs: Rig[] = [];
    after(() => {
      for (const rig of rigs) rig.close();
    });
    /** A switch with n ports; port i is known to everyone as mac(i + 1). */
    const make = (n: number, options: RigPortOptions | ((i: number) => RigPortOptions) = {}, learned = true) => {
      const rig = new Rig(start);
      rigs.push(rig);
      const ports = Array.from({ length: n }, (_, i) =>
        rig.addPort(typeof options === 'function' ? options(i) : options),
      );
      if (learned) {
        for (const [i, p] of ports.entries()) {
          const hdr = typeof options === 'function' ? options(i).vnetHdrLen : options.vnetHdrLen;
          p.tx[0]!.put(frame(BROADCAST, mac(i + 1), 60, 0, hdr));
          p.tx[0]!.publish();
          rig.serve();
        }
        for (const p of ports) for (const ring of p.rx) ring.receive();
        rig.signals();
      }
      return { rig, ports, tx: ports.map((p) => p.tx[0]!), rx: ports.map((p) => p.rx[0]!) };
    };
    it('delivers a unicast frame to the port that has the address, and to no other', () => {
      const { rig, tx, rx } = make(3);
      const f = frame(mac(2), mac(1), 77, 5);
      tx[0]!.put(f);
      tx[0]!.publish();
      assert.equal(rig.serve(), 1);
      assert.deepEqual(rx[1]!.receive(), [[f]]);
      assert.deepEqual(rx[2]!.receive(), []);
      assert.deepEqual(rx[0]!.receive(), []);
      assert.equal(rig.serve(), 0);
    });
  });
}
