/** Ports of the machine this runs in, on a machine that has none; tests/e2e/guest-driver.test.ts has those that do. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PTNETMAP_PCI_NETIF_ID } from '../../../src/abi/index.ts';
import { openPort } from '../../../src/api/index.ts';
import { findPci } from '../../../src/guest/index.ts';
import { physicalAddress, SysError, VfioDevice } from '../../../src/os/index.ts';

test('ptnet:N without such a device: ENODEV, and how many there are', async () => {
  const found = findPci(PTNETMAP_PCI_NETIF_ID).length;
  await assert.rejects(openPort('ptnet:99'), (e: SysError) => {
    assert.equal(e.code, 'ENODEV');
    assert.match(e.message, new RegExp(`ptnet:99: this machine has ${found} ptnet devices`));
    return true;
  });
});

test("ptnet:N with rings of one's own: EINVAL, they are the host's", async () => {
  await assert.rejects(openPort('ptnet:0', { txRings: 2 }), /the host has chosen its rings.*EINVAL/);
});

test('a device without VFIO: the error names the device and the file', () => {
  assert.throws(() => new VfioDevice('0000:00:00.0', 'no-group'), /PCI device 0000:00:00.0: open \/dev\/vfio\/\S+: E/);
});

test('a physical address of memory that is not there: EPERM', () => {
  assert.throws(() => physicalAddress(4096), SysError);
});
