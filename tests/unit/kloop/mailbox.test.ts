/** Mailboxes: commands are answered by the thread they are for, and nobody waits for one that has ended. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { MessageChannel } from 'node:worker_threads';
import { type Command, type CommandMessage, CTL, failure, Mailbox, ringDoorbell } from '../../../src/kloop/index.ts';
import { closeFd, errno, MessageSocket, SysError, socketPair } from '../../../src/os/index.ts';
import { DeviceRig } from '../device/rig.ts';

test('R20: a command to a thread that ends before it answers, or has ended, fails', async () => {
  const { port1, port2 } = new MessageChannel();
  let announced = 0;
  const mailbox = new Mailbox<string>(port1, () => announced++);
  port2.on('message', ({ id, command }: CommandMessage<string>) => {
    if (command === 'one') port2.postMessage({ id, result: { value: 7 } });
    else port2.close();
  });
  assert.equal(await mailbox.call('one'), 7);
  const closed = once(port1, 'close');
  await assert.rejects(mailbox.call('two'), /the thread that was asked has ended/);
  await closed;
  await assert.rejects(mailbox.call('three'), /the thread that was asked has ended/);
  assert.equal(announced, 2);
});

test('an answer that a thread gave before it ended still arrives', async () => {
  const { port1, port2 } = new MessageChannel();
  const mailbox = new Mailbox<string>(port1);
  port2.on('message', ({ id }: CommandMessage<string>) => {
    port2.postMessage({ id, result: id === 1 ? { value: 1 } : { error: 'no' } });
    if (id === 2) port2.close();
  });
  const [first, second] = [mailbox.call('a'), mailbox.call('b')];
  assert.equal(await first, 1);
  await assert.rejects(second, /^Error: no$/);
});

test('an error of a system call arrives as one: its errno reaches the client that asked', async () => {
  const { port1, port2 } = new MessageChannel();
  const mailbox = new Mailbox<Command>(port1);
  const rig = new DeviceRig();
  port2.on('message', ({ id, command }: CommandMessage<Command>) => {
    const result = command.op === 'end' ? failure(new SysError('eventfd', errno.EMFILE)) : rig.kloop.execute(command);
    port2.postMessage({ id, result });
  });
  const fails = (command: Command, code: string, message: string): Promise<void> =>
    assert.rejects(mailbox.call(command), (e) => {
      assert.ok(e instanceof SysError);
      assert.deepEqual([e.code, e.errno, e.message], [code, errno[code as 'EMFILE'], message]);
      return true;
    });
  await fails({ op: 'end' }, 'EMFILE', 'eventfd: EMFILE');
  await fails({ op: 'kick-add', fd: -1 }, 'EBADF', 'datapath: kick-add: epoll_ctl(ADD, fd -1): EBADF');
  rig.kloop.close();
  port2.close();
});

test('the doorbell of a thread that has none yet is left alone: nothing is written to stdin', async () => {
  const ctl = new Int32Array(new SharedArrayBuffer(4 * CTL.LENGTH));
  ringDoorbell(ctl);
  assert.equal(ctl[CTL.MAIL], 1);
  const rig = new DeviceRig();
  assert.equal(rig.ctl[CTL.DOORBELL], rig.kloop.doorbell);
  rig.kloop.close();
  assert.equal(rig.ctl[CTL.DOORBELL], 0, 'nor that of one that has ended: its number may be used again');
  // Descriptor 0 is what a doorbell of 0 would be.
  const [ours, theirs] = socketPair();
  const script = `
    const { CTL, ringDoorbell } = await import(${JSON.stringify(new URL('../../../src/kloop/index.js', import.meta.url).href)});
    ringDoorbell(new Int32Array(new SharedArrayBuffer(4 * CTL.LENGTH)));`;
  const args = ['--input-type=module', '-e', script];
  const child = spawn(process.execPath, args, { stdio: [theirs, 'ignore', 'inherit'] });
  assert.deepEqual(await once(child, 'exit'), [0, null]);
  assert.equal(new MessageSocket(ours).receive(new Uint8Array(8)).again, true);
  for (const fd of [ours, theirs]) closeFd(fd);
});
