/** `ptnet bridge` on a single interface: the host is reached through it as before, and monitors see what passes. */
import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { CaptureReader } from '../../src/cli/pcap/reader.ts';
import { PtnetProcess, until } from '../e2e/ptnet.ts';
import { NicLab, nicSkip } from './nic-lab.ts';

/** Types of the ICMP packets with an identifier in a capture. */
function icmpTypes(file: string, id: number): number[] {
  const reader = new CaptureReader(file);
  const types: number[] = [];
  while (reader.next()) {
    const { data } = reader;
    const isIcmp = data[12] === 8 && data[13] === 0 && data[23] === 1;
    if (isIcmp && ((data[38]! << 8) | data[39]!) === id) types.push(data[34]!);
  }
  reader.close();
  return types;
}

test('bridge joins an interface with the host’s stack at it, without a copy; dump watches both', {
  skip: nicSkip('ping'),
}, async () => {
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
    // What the card receives is what the host's stack gets, and the other way round: 8 asks, 0 answers.
    for (const [port, direction, type, id] of [
      ['netmap:veth0', 'in', 8, 1],
      ['netmap:veth0', 'out', 0, 2],
      ['netmap:veth0^', 'in', 0, 3],
      ['netmap:veth0^', 'out', 8, 4],
    ] as const) {
      const file = join(lab.runDir, 'dump.pcap');
      const args = ['dump', '--run-dir', lab.runDir, '-i', port, '-Q', direction, '-w', file];
      const dump = new PtnetProcess(args);
      await dump.says(/listening on/);
      const asks = await lab.there.run('ping', ['-c', '3', '-i', '0.2', '-W', '60', '-e', String(id), '10.98.0.1']);
      assert.equal(asks.status, 0, asks.text);
      await until('the capture has them', () => statSync(file).size > 24 && icmpTypes(file, id).length >= 3);
      assert.equal(await dump.end(), 0);
      assert.deepEqual(icmpTypes(file, id), [type, type, type], `${port} ${direction}`);
    }
    assert.equal(await bridge.end(), 0);
    assert.match(bridge.stdout, /netmap:veth0 --> netmap:veth0\^: \d+ packets/);
    assert.ok(await lab.there.pings('10.98.0.1'), 'and when it has ended');
  } finally {
    await lab.close();
  }
});
