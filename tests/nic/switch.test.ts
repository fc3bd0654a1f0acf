/** Interfaces as ports of a switch, and the host's stack between wire and switch: what goes through them (docs/nics.md). */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, before, describe, it } from 'node:test';
import type { NetmapPort } from '../../src/api/index.ts';
import { openPort, POLLIN } from '../../src/api/index.ts';
import { FrameCounter } from './nic-frames.ts';
import { Namespace, NicLab, nicSkip } from './nic-lab.ts';
import { conserves, long, QUIET_MS, receive, send } from './nic-traffic.ts';

describe('interfaces in a switch', { skip: nicSkip('ping', 'iperf3') }, () => {
  let lab: NicLab;
  before(async () => {
    lab = new NicLab();
    lab.there.ip('addr', 'add', '10.77.0.2/24', 'dev', 'veth1');
    await lab.start();
  });
  after(() => lab.close());

  /** iperf3 from a namespace to a server in another one, both ways. */
  async function iperf(address: string, where = lab.here, from = lab.there): Promise<void> {
    for (const direction of [[], ['-R']]) {
      const server = where.spawn('iperf3', '-s', '-1', '--forceflush', '-B', address);
      const ended = once(server, 'close');
      await once(server.stdout!, 'data');
      const size = long ? '200M' : '5M';
      const { status, text } = await from.run('iperf3', ['-c', address, '-n', size, ...direction]);
      if (status !== 0) server.kill('SIGKILL');
      assert.equal(status, 0, text);
      await ended;
    }
  }

  it('a wire, a switch and a guest whose stack is in another namespace: ping, iperf3, both ways', async () => {
    const guests = new Namespace(`${lab.here.name}-g`);
    const guest = guests.ptnet('up', 'vale0:g', '--name', 'g0', '--run-dir', lab.runDir, 'inet', '10.77.0.9/24');
    try {
      await lab.valeCtl('a', 'vale0:veth0');
      while (!(await lab.ports()).some((p) => p.name === 'vale0:g' && p.running)) await new Promise(setImmediate);
      assert.ok(await lab.there.pings('10.77.0.9'));
      assert.ok(await lab.there.pings('10.77.0.9', '-s', '4000'));
      await iperf('10.77.0.9', guests);
      assert.ok(await guests.pings('10.77.0.2'));
    } finally {
      guest.kill('SIGINT');
      await once(guest, 'close');
      guests.close();
    }
    await lab.valeCtl('d', 'vale0:veth0');
  });

  it('a stack beyond a TAP interface talks through the switch and the NIC: ping, iperf3, both ways', async () => {
    await lab.valeCtl('a', 'vale0:veth0');
    await lab.valeCtl('a', 'vale0:tap0');
    assert.equal((await lab.port('vale0:tap0')).vnetHdrLen, 12);
    lab.here.ip('addr', 'add', '10.77.0.1/24', 'dev', 'tap0');
    assert.ok(await lab.there.pings('10.77.0.1'));
    assert.ok(await lab.there.pings('10.77.0.1', '-s', '4000'));
    await iperf('10.77.0.1');
    await lab.valeCtl('d', 'vale0:tap0');
    await lab.valeCtl('d', 'vale0:veth0');
    assert.deepEqual(await lab.ports(), []);
    assert.throws(() => lab.here.ip('link', 'show', 'tap0'));
  });

  it('segments of 64 KiB pass between a guest and the stack beyond a TAP interface as they are, both ways', async () => {
    const guests = new Namespace(`${lab.here.name}-s`);
    const guest = guests.ptnet('up', 'vale0:g', '--name', 'g0', '--run-dir', lab.runDir, 'inet', '10.78.0.9/24');
    try {
      await lab.valeCtl('a', 'vale0:tap1');
      lab.here.ip('addr', 'add', '10.78.0.1/24', 'dev', 'tap1');
      while (!(await lab.ports()).some((p) => p.name === 'vale0:g' && p.running)) await new Promise(setImmediate);
      await iperf('10.78.0.1', lab.here, guests);
      const { txRings, rxRings } = await lab.port('vale0:tap1');
      for (const [way, ring] of [
        ['to the guest', txRings[0]!],
        ['to the stack', rxRings[0]!],
      ] as const) {
        assert.equal(ring.drops['bad'], undefined, `${way}: frames refused`);
        // A way's acknowledgements are as many as the other one's segments, at most.
        assert.ok(ring.bytes / ring.packets > 1514, `${way}: ${ring.bytes} bytes in ${ring.packets} frames`);
      }
    } finally {
      guest.kill('SIGINT');
      await once(guest, 'close');
      guests.close();
    }
    await lab.valeCtl('d', 'vale0:tap1');
  });

  it('-h: the host talks through the switch; a port of the switch shares the wire; -d gives it back', async () => {
    lab.there.ip('neigh', 'flush', 'all');
    lab.here.ip('addr', 'add', '10.77.0.1/24', 'dev', 'veth0');
    assert.ok(await lab.there.pings('10.77.0.1'));
    await lab.valeCtl('h', 'vale0:veth0');
    const stack = await openPort('vale0:veth0^/r', { runDir: lab.runDir });
    assert.ok(await lab.there.pings('10.77.0.1'));
    assert.equal(await stack.wait(POLLIN, { timeoutMs: QUIET_MS }), POLLIN, 'a monitor shows what the stack receives');
    await stack.close();
    await iperf('10.77.0.1');
    const port = await openPort('vale0:guest', { runDir: lab.runDir });
    await conserves(lab, port, 300, { frames: 1000 });
    await port.close();
    await lab.valeCtl('d', 'vale0:veth0');
    assert.ok(await lab.there.pings('10.77.0.1'));
    assert.ok(!lab.here.ip('link').includes('ptnh'));
  });

  it('a firewall between the wire and the host: what it lets through arrives, what it stops does not', async () => {
    const wire = await openPort('netmap:veth0', { runDir: lab.runDir });
    const stack = await openPort('netmap:veth0^', { runDir: lab.runDir });
    let stopIcmp = false;
    const ended = new AbortController();
    const forward = async (from: NetmapPort, to: NetmapPort): Promise<void> => {
      while (!ended.signal.aborted) {
        await from.wait(POLLIN, { timeoutMs: 100 });
        const [rx, tx] = [from.rxRings[0]!, to.txRings[0]!];
        for (; rx.space() > 0 && tx.space() > 0; rx.head = rx.cur = rx.next(rx.head)) {
          const source = rx.bufOfs(rx.head);
          const frame = from.m.u8.subarray(source, source + rx.len(rx.head));
          // IPv4, protocol ICMP
          if (stopIcmp && frame[12] === 8 && frame[13] === 0 && frame[23] === 1) continue;
          to.m.u8.set(frame, tx.bufOfs(tx.head));
          tx.setLen(tx.head, frame.length);
          tx.head = tx.cur = tx.next(tx.head);
        }
        from.rxsync();
        to.txsync();
      }
    };
    const both = Promise.all([forward(wire, stack), forward(stack, wire)]);
    try {
      assert.ok(await lab.there.pings('10.77.0.1'));
      stopIcmp = true;
      assert.ok(await lab.there.silent('10.77.0.1'));
      await iperf('10.77.0.1');
      stopIcmp = false;
      assert.ok(await lab.there.pings('10.77.0.1'));
    } finally {
      ended.abort();
      await both;
      await wire.close();
      await stack.close();
    }
    assert.ok(await lab.there.pings('10.77.0.1'));
  });

  it('a TAP interface as a port of its own: the stack beyond it and a user exchange frames', async () => {
    const port = await openPort('netmap:tap7', { runDir: lab.runDir });
    try {
      const { interface: about } = await lab.port('netmap:tap7');
      assert.equal(about?.mode, 'tap');
      const receiver = await lab.here.peer('receive', 'tap7').ready();
      await send(port, 2000, 500, { receiver });
      assert.equal((await receiver.result('SIGINT'))['frames'], 2000);
      const counter = new FrameCounter();
      const sender = await lab.here.peer('send', 'tap7', '1000', '1514', '128').ready();
      await receive(port, counter, 1000, { sender });
      await sender.result();
      assert.deepEqual([counter.frames, counter.wrong], [1000, 0]);
    } finally {
      await port.close();
    }
    await lab.givenBack();
    assert.throws(() => lab.here.ip('link', 'show', 'tap7'));
  });

  it('what cannot be had is refused with its reason', async () => {
    const open = (name: string) => () => openPort(name, { runDir: lab.runDir });
    await assert.rejects(open('netmap:veth9'), /no interface veth9/);
    for (const monitor of ['netmap:veth0/r', 'netmap:veth0/t', 'netmap:veth0/z']) {
      await assert.rejects(open(monitor), /there is no port netmap:veth0 to be monitored/);
    }
    const port = await openPort('netmap:veth0', { runDir: lab.runDir });
    await assert.rejects(open('netmap:veth0/z'), /a zero-copy monitor/);
    await assert.rejects(open('netmap:veth0'), /rings open: EBUSY/);
    await assert.rejects(lab.valeCtl('a', 'vale0:veth0'), /interface veth0 is a port already: netmap:veth0: EBUSY/);
    await port.close();
    await lab.givenBack();
    await lab.valeCtl('a', 'vale0:veth0');
    for (const name of ['vale0:veth0', 'vale0:veth0-0', 'vale0:veth0/R']) {
      await assert.rejects(open(name), { code: 'EBUSY', message: /vale0:veth0 is an interface in a switch/ });
    }
    await lab.valeCtl('d', 'vale0:veth0');
    await assert.rejects(lab.valeCtl('a', 'vale0:veth9'), /no interface veth9/);
    assert.deepEqual(await lab.ports(), []);
  });
});
