/** Buffers whose address the kernel gets: they outlive the call, and are not kept for ever. */
import assert from 'node:assert/strict';
import { it } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { scratch } from '../../../src/os/libc.ts';

setFlagsFromString('--expose-gc');
const gc = runInNewContext('gc') as () => void;

/** Makes `count` buffers; says of the first whether it is still there when nothing refers to it. */
async function survives(count: number): Promise<boolean> {
  const first = new WeakRef(scratch(8).u8.buffer);
  for (let i = 1; i < count; i++) scratch(8);
  await turn(); // a WeakRef keeps what it refers to until the turn's end
  gc();
  return first.deref() !== undefined;
}

it('a buffer of which only the address is known stays while a function may use it, and goes afterwards', async () => {
  assert.equal(await survives(1), true);
  assert.equal(await survives(20), true);
  assert.equal(await survives(100), false);
});
