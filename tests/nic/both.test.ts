/** `netmap:IF*`: the wire's rings and the host's in one port, and a user of it that forwards between them (docs/nics.md). */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import type { NetmapPort, NetmapRing } from '../../src/api/index.ts';
import { openDevice, openPort, POLLIN } from '../../src/api/index.ts';
import { type Namespace, NicLab, nicSkip } from './nic-lab.ts';
import { FRAMES, QUIET_MS, WINDOW } from './nic-traffic.ts';

/** Passes on the frames of one ring by exchanging buffers, those that `lets` does. */
function pass(port: NetmapPort, rx: NetmapRing, tx: NetmapRing, lets: (frame: Uint8Array) => boolean): void {
  for (; rx.space() > 0 && tx.space() > 0; rx.head = rx.cur = rx.next(rx.head)) {
    const ofs = rx.bufOfs(rx.head);
    if (!lets(port.m.u8.subarray(ofs, ofs + rx.len(rx.head)))) continue;
    const idx = tx.bufIdx(tx.head);
    tx.setBufIdx(tx.head, rx.bufIdx(rx.head));
    tx.setLen(tx.head, rx.len(rx.head));
    tx.setFlags(tx.head, rx.flags(rx.head));
    rx.setBufIdx(rx.head, idx);
    tx.head = tx.cur = tx.next(tx.head);
  }
}

/** Forwards between the wire's rings and the host's, the last one, while `body` runs. */
async function forwarding(
  port: NetmapPort,
  body: () => Promise<void>,
  lets: (frame: Uint8Array) => boolean = () => true,
): Promise<void> {
  const host = port.rxRings.length - 1;
  const ended = new AbortController();
  const forward = async (): Promise<void> => {
    while (!ended.signal.aborted) {
      await port.wait(POLLIN, { timeoutMs: 100 });
      for (let i = 0; i < host; i++) pass(port, port.rxRings[i]!, port.txRings[host]!, lets);
      pass(port, port.rxRings[host]!, port.txRings[0]!, lets);
      port.rxsync();
      port.txsync();
    }
  };
  const forwards = forward();
  try {
    await body();
  } finally {
    ended.abort();
    await forwards;
  }
}

/** Numbered frames from one end to the other: all arrive, in order, whole. */
async function conserved(from: Namespace, how: string, fromIf: string, to: Namespace, toIf: string): Promise<void> {
  for (const bytes of [60, 1514]) {
    const receiver = await to.peer('receive', toIf).ready();
    const sender = await from.peer(how, fromIf, String(FRAMES), String(bytes), String(WINDOW)).ready();
    for (let at = performance.now(), last = 0; receiver.frames < FRAMES && performance.now() - at < QUIET_MS; ) {
      await receiver.change();
      sender.arrived(receiver.frames);
      if (receiver.frames > last) at = performance.now();
      last = receiver.frames;
    }
    await sender.result();
    const got = await receiver.result('SIGINT');
    assert.deepEqual(got, { frames: FRAMES, disorder: 0, wrong: 0, bytes: FRAMES * bytes }, `${how}, ${bytes} bytes`);
  }
}

const isIcmp = (f: Uint8Array): boolean => f[12] === 8 && f[13] === 0 && f[23] === 1;

describe('wire and host in one port', { skip: nicSkip('ping') }, () => {
  let lab: NicLab;
  beforeEach(async () => {
    lab = new NicLab();
    lab.addresses();
    await lab.start();
  });
  afterEach(() => lab.close());

  const open = (name: string, options = {}) => openPort(name, { runDir: lab.runDir, ...options });

  async function assertGivenBack(): Promise<void> {
    await lab.givenBack();
    assert.ok(!lab.here.ip('link').includes('ptnh'));
    await lab.untouched();
    assert.ok(await lab.there.pings('10.77.0.1'));
  }

  /** Of a port that is open: joins host and wire if somebody forwards, and only then. @param stack where the host's frames are */
  async function joins(port: NetmapPort, stack: string): Promise<void> {
    assert.deepEqual([port.txRings.length, port.rxRings.length], [2, 2]);
    assert.ok(await lab.there.silent('10.77.0.1'), 'nobody forwards');
    await forwarding(port, async () => {
      assert.ok(await lab.there.pings('10.77.0.1'));
      assert.ok(await lab.here.pings('10.77.0.2', '-s', '4000'));
      await conserved(lab.there, 'send', 'veth1', lab.here, stack);
      await conserved(lab.here, 'stack', stack, lab.there, 'veth1');
    });
    await port.close();
    await assertGivenBack();
  }

  it('who forwards between its rings joins host and wire; numbered frames, both ways; closed, all is as before', async () => {
    const port = await open('netmap:veth0*');
    assert.equal((await lab.port('netmap:veth0*')).interface?.mode, 'native');
    await joins(port, 'veth0');
  });

  it('the same with packet sockets: the host gets nothing past the port, the port nothing of its own', async () => {
    // What the stack gets of veth0 is seen at the bridge: packet sockets at veth0 itself see all that comes from the wire.
    lab.bridge();
    lab.here.ip('addr', 'flush', 'dev', 'veth0');
    lab.here.ip('addr', 'add', '10.77.0.1/24', 'dev', 'br0');
    const port = await open('netmap:veth0*', { bufSize: 4096 });
    const about = (await lab.port('netmap:veth0*')).interface;
    assert.equal(about?.mode, 'packet');
    assert.doesNotMatch(about.because ?? '', /the host receives its frames too/);
    await joins(port, 'br0');
  });

  it('a firewall in a virtual machine: what it lets through arrives, what it stops does not', async () => {
    await lab.end();
    await lab.start({ vms: { fw: { ports: ['netmap:veth0*'] } } });
    const socket = (name: string): string => join(lab.runDir, 'vm', 'fw', name);
    const port = await openDevice(socket('memdev.sock'), socket('ptnet0.sock'));
    let icmp = true;
    await forwarding(
      port,
      async () => {
        const both = async (): Promise<boolean> => (await lab.there.pings('10.77.0.1')) && lab.here.pings('10.77.0.2');
        assert.ok(await both());
        icmp = false;
        assert.ok(await lab.there.silent('10.77.0.1'));
        assert.ok(await lab.here.silent('10.77.0.2'));
        icmp = true;
        assert.ok(await both());
      },
      (frame) => icmp || !isIcmp(frame),
    );
    await port.close();
  });

  it('several queues: the host’s ring is the one after them', async () => {
    const queues = ['numrxqueues', '3', 'numtxqueues', '3'];
    lab.here.ip('link', 'add', 'vethq', ...queues, 'type', 'veth', 'peer', 'name', 'vethr', 'netns', lab.there.name);
    lab.here.ip('link', 'set', 'vethq', 'addrgenmode', 'none', 'up');
    lab.there.ip('link', 'set', 'vethr', 'addrgenmode', 'none', 'up');
    lab.here.linksUp('vethq');
    lab.there.linksUp('vethr');
    lab.here.ip('addr', 'add', '10.78.0.1/24', 'dev', 'vethq');
    lab.there.ip('addr', 'add', '10.78.0.2/24', 'dev', 'vethr');
    for (const options of [{}, { bufSize: 4096 }]) {
      const port = await open('netmap:vethq*', options);
      assert.equal(port.rxRings.length, 4);
      await forwarding(port, async () => assert.ok(await lab.here.pings('10.78.0.2')));
      await port.close();
      await lab.givenBack();
    }
  });

  it('its rings are nobody else’s: not by other names, and not while others have some of them', async () => {
    const both = await open('netmap:veth0*');
    for (const name of ['netmap:veth0', 'netmap:veth0-0', 'netmap:veth0^', 'netmap:veth0/x']) {
      await assert.rejects(open(name), /interface veth0\^? is a port already: netmap:veth0\*: EBUSY/);
    }
    await assert.rejects(open('netmap:veth0*'), /has it or some of these rings open: EBUSY/);
    await assert.rejects(lab.valeCtl('h', 'vale0:veth0'), /is a port already: netmap:veth0\*: EBUSY/);
    await both.close();
    await lab.givenBack();
    for (const name of ['netmap:veth0', 'netmap:veth0^', 'netmap:veth0-0']) {
      const part = await open(name);
      await assert.rejects(open('netmap:veth0*'), /interface veth0\* is a port already: netmap:veth0\^?: EBUSY/);
      await part.close();
      await lab.givenBack();
    }
    await (await open('netmap:veth0*')).close();
    await assertGivenBack();
  });

  it('the daemon killed: the interface works for the host again', async () => {
    const port = await open('netmap:veth0*');
    await forwarding(port, async () => assert.ok(await lab.there.pings('10.77.0.1')));
    await lab.end('SIGKILL');
    assert.ok(!lab.here.ip('link').includes('ptnh'));
    await lab.untouched();
    assert.ok(await lab.there.pings('10.77.0.1'));
    await port.close();
  });

  it('the interface deleted: its user is told, and can have the one that comes back', async () => {
    const port = await open('netmap:veth0*');
    const told = assert.rejects(port.wait(POLLIN), {
      message: /^port netmap:veth0\*: interface veth0\* is gone: ENODEV$/,
    });
    lab.here.ip('link', 'del', 'veth0');
    await told;
    lab.wire();
    const again = await open('netmap:veth0*');
    assert.equal(again.rxRings.length, 2);
    await again.close();
    await port.close();
  });
});
