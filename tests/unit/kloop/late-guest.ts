/**
 * A worker that plays a guest's processor: once the datapath thread sleeps, it writes a ring's cur and head, and kicks or
 * not. `rounds` times; each waits until the thread has taken the one before (hwcur = head).
 */
import { readSync, writeSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { nm_csb_atok, nm_csb_ktoa } from '../../../src/abi/index.ts';
import { CTL } from '../../../src/kloop/index.ts';
import { eventfdSignal } from '../../../src/os/index.ts';

export interface LateGuest {
  readonly ctl: Int32Array;
  /** The guest's memory, and where the ring's CSB halves are in it. */
  readonly fd: number;
  readonly atok: number;
  readonly ktoa: number;
  readonly slots: number;
  /** Written after head; -1: no kick. */
  readonly kick: number;
  readonly rounds: number;
}

const { ctl, fd, atok, ktoa, slots, kick, rounds } = workerData as LateGuest;
const word = Buffer.alloc(4);
const read = (at: number): number => {
  readSync(fd, word, 0, 4, at);
  return word.readUInt32LE();
};
const write = (at: number, value: number): void => {
  word.writeUInt32LE(value);
  writeSync(fd, word, 0, 4, at);
};

for (let round = 1; round <= rounds; round++) {
  while (Atomics.load(ctl, CTL.ASLEEP) === 0) Atomics.wait(ctl, CTL.LENGTH - 1, 0, 1);
  // The flag is set just before the system call: some rounds come in between, most later.
  Atomics.wait(ctl, CTL.LENGTH - 1, 0, round % 3);
  const head = round % slots;
  write(atok + nm_csb_atok.ofs.cur, head);
  write(atok + nm_csb_atok.ofs.head, head);
  if (kick >= 0) eventfdSignal(kick);
  while (read(ktoa + nm_csb_ktoa.ofs.hwcur) !== head) Atomics.wait(ctl, CTL.LENGTH - 1, 0, 1);
}
parentPort?.postMessage('done');
Atomics.store(ctl, CTL.MAIL, 1);
eventfdSignal(Atomics.load(ctl, CTL.DOORBELL));
