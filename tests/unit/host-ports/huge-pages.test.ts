/** Regions on huge pages in a daemon: who gets them, what passes through them, and where they are not to be had. */
import assert from 'node:assert/strict';
import { chmodSync } from 'node:fs';
import { after, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import type { DaemonConfig } from '../../../src/host/config.ts';
import { defaultConfig } from '../../../src/host/config.ts';
import { HUGE_PAGE, hugePages, PAGE_SIZE } from '../../../src/os/index.ts';
import { asUser } from '../host/as-user.ts';
import { withDaemon } from '../host/lab.ts';
import { borrowHugePages } from '../memory/huge-pages.ts';
import { bootMachine, Lab, pump, range } from './support.ts';

const huge = await borrowHugePages(32);
after(() => huge.giveBack());

const { ports } = defaultConfig();
const onHugePages: Partial<DaemonConfig> = {
  ports: { ...ports, txSlots: 256, rxSlots: 256, hugePages: true },
  regions: { small: { buffers: 4096, interfaces: 8, rings: 8 }, plain: { buffers: 64, hugePages: false } },
  vms: {
    box: { ports: ['netmap:p}1@small'], trustUnsealedMemory: false },
    plain: { ports: ['vale0:plain'], trustUnsealedMemory: false, hugePages: false },
  },
};

async function withLab(config: Partial<DaemonConfig>, run: (lab: Lab) => Promise<void>): Promise<void> {
  const lab = await Lab.start(config);
  try {
    await run(lab);
  } finally {
    await lab.stop();
  }
}

test('processes and a VM on huge pages: frames pass, copied and not; their pages come back', {
  skip: huge.skip,
}, async () => {
  const before = hugePages().free;
  await withLab(onHugePages, async (lab) => {
    const [a, b] = [await lab.open('netmap:q{1'), await lab.open('netmap:q}1')];
    const [c, d] = [await lab.open('vale1:c'), await lab.open('vale1:d')];
    const master = await lab.open('netmap:p{1@small');
    const { sockets } = lab.daemon.status().vms[0]!;
    const machine = await bootMachine(sockets[0]!, [sockets[1]!]);
    const regions = await lab.regions();
    assert.deepEqual(
      regions.map(({ name, pageBytes }) => [name.replace(/\d+/, 'N'), pageBytes]),
      [
        ['@small', HUGE_PAGE],
        ['plain', PAGE_SIZE],
        ['process N netmap:q{1', HUGE_PAGE],
        ['process N vale1:c', HUGE_PAGE],
        ['process N vale1:d', HUGE_PAGE],
      ],
    );
    assert.ok(regions.every(({ bytes, pageBytes, because }) => bytes % pageBytes === 0 && because === undefined));
    assert.deepEqual(pump(a, b, 0, 1000), range(0, 1000));
    assert.deepEqual(pump(c, d, 1, 200), range(1, 200));
    assert.deepEqual(pump(master, machine.ports[0]!, 0, 1000), range(0, 1000));
    await machine.off();
    await lab.closeAll();
    // The VM's region stays as long as the daemon.
    const left = before - regions[0]!.bytes / HUGE_PAGE;
    for (let i = 0; hugePages().free !== left; i++) {
      assert.ok(i < 500, `${hugePages().free} pages are free, and should be ${left}`);
      await setTimeout(10);
    }
  });
});

test('where there are not enough, a region lies on ordinary pages: the log and the list say so', () =>
  withDaemon('regions: { big: { buffers: 1000000, hugePages: true } }', async (lab) => {
    const { openPort } = await import('../../../src/api/index.ts');
    const port = await openPort('vale0:a@big', { runDir: lab.dir });
    const says = /\d+ huge pages of 2 MiB for "ptnet:@big": \d+ are free \(as root, raise vm\.nr_hugepages\): ENOMEM/;
    await lab.waitForLog(/region @big lies on ordinary pages, not on huge ones: \d+ huge pages/);
    const [big] = lab.status.regions;
    assert.equal(big!.pageBytes, PAGE_SIZE);
    assert.match(big!.because!, says);
    await port.close();
  }));

test('R21: other users get ordinary pages, and none of a region on huge ones: they could take its pages away', async (t) => {
  if (process.getuid!() !== 0) return t.skip('needs root, to be another user for a moment');
  if (huge.skip !== false) return t.skip(huge.skip);
  const nobody = 65534;
  const yaml =
    `ports: { txSlots: 64, rxSlots: 64, hugePages: true }\nusers: { ${nobody}: { ports: ["vale0:*", "@lab"] } }\n` +
    'regions: { lab: { buffers: 512 } }\nvms: { fw: { ports: ["vale0:fw@lab"] } }';
  await withDaemon(yaml, async (lab) => {
    chmodSync(lab.dir, 0o711);
    assert.equal(lab.status.regions[0]!.pageBytes, HUGE_PAGE);
    const open = (port: string): Promise<{ reply?: string }> => asUser(nobody, lab.dir, { op: 'open', port });
    assert.match((await open('vale0:own')).reply!, /"ok":true/);
    assert.match(
      (await open('vale0:x@lab')).reply!,
      /open vale0:x@lab: its memory lies on huge pages \(region @lab\), which only VMs, root and the daemon's user get: EPERM/,
    );
  });
  return undefined;
});
