/** `ptnet bridge` on a single interface: the host is reached through it as before. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PtnetProcess } from '../e2e/ptnet.ts';
import { NicLab, nicSkip } from './nic-lab.ts';

test('bridge joins an interface with the host’s stack at it, without a copy', { skip: nicSkip('ping') }, async () => {
  const lab = new NicLab();
  try {
    lab.here.ip('addr', 'add', '10.98.0.1/24', 'dev', 'veth0');
    lab.there.ip('addr', 'add', '10.98.0.2/24', 'dev', 'veth1');
    await lab.start();
    const bridge = new PtnetProcess(['bridge', '--run-dir', lab.runDir, '-i', 'netmap:veth0']);
    await bridge.says(/netmap:veth0\^ 1 rx rings <-> netmap:veth0\n/);
    assert.match(bridge.stderr, /^zero copy\n/);
    assert.ok(await lab.there.pings('10.98.0.1'));
    assert.ok(await lab.here.pings('10.98.0.2'));
    assert.equal(await bridge.end(), 0);
    assert.match(bridge.stdout, /netmap:veth0 --> netmap:veth0\^: \d+ packets/);
    assert.ok(await lab.there.pings('10.98.0.1'), 'and when it has ended');
  } finally {
    await lab.close();
  }
});
