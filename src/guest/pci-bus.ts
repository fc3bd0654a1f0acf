/**
 * The PCI devices of the machine this runs in (Linux, /sys/bus/pci), for a driver in a virtual machine: which of them are
 * ptnet's, and how to open one. Entry points: findPci, openPci.
 */
import { execFileSync } from 'node:child_process';
import { accessSync, constants, existsSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { PTNETMAP_PCI_VENDOR_ID } from '../abi/index.ts';
import { errno, SysError } from '../os/index.ts';
import type { PciDevice } from './pci.ts';
import { SysfsPci } from './sysfs-pci.ts';
import { VfioPci } from './vfio-pci.ts';

const DEVICES = '/sys/bus/pci/devices';
const VFIO_DRIVER = '/sys/bus/pci/drivers/vfio-pci';

/** Folders in sysfs of the devices with this id of ptnet's vendor, by their addresses. */
export function findPci(deviceId: number): string[] {
  if (!existsSync(DEVICES)) return [];
  const read = (folder: string, file: string): number => Number(readFileSync(join(folder, file), 'utf8'));
  return readdirSync(DEVICES)
    .toSorted()
    .map((address) => join(DEVICES, address))
    .filter((f) => read(f, 'vendor') === PTNETMAP_PCI_VENDOR_ID && read(f, 'device') === deviceId);
}

/** Opens a device that does DMA: through VFIO if it stands behind an IOMMU, else through sysfs. @throws SysError */
export function openPci(folder: string): PciDevice {
  const group = linkName(folder, 'iommu_group');
  if (group === undefined) {
    checkNoDriver(folder);
    return new SysfsPci(folder);
  }
  bindVfioPci(folder);
  return new VfioPci(basename(folder), group);
}

/** Opens a device that does no DMA, so that other processes can too; without the right to, through VFIO. @throws SysError */
export function openPassivePci(folder: string): PciDevice {
  try {
    accessSync(join(folder, 'config'), constants.W_OK);
  } catch {
    return openPci(folder);
  }
  return new SysfsPci(folder);
}

/** Name of what a link in a device's folder leads to. */
function linkName(folder: string, link: string): string | undefined {
  const path = join(folder, link);
  return existsSync(path) ? basename(readlinkSync(path)) : undefined;
}

function checkNoDriver(folder: string): string | undefined {
  const driver = linkName(folder, 'driver');
  if (driver !== undefined && driver !== 'vfio-pci') {
    throw new SysError(
      `PCI device ${basename(folder)} belongs to the kernel's driver "${driver}": give it free first, with ` +
        `echo ${basename(folder)} > ${folder}/driver/unbind`,
      errno.EBUSY,
    );
  }
  return driver;
}

/** Gives a device without a driver to vfio-pci, whose module is loaded if need be. */
function bindVfioPci(folder: string): void {
  const what = `give PCI device ${basename(folder)} to vfio-pci`;
  if (checkNoDriver(folder) === 'vfio-pci') return;
  try {
    if (!existsSync(VFIO_DRIVER)) execFileSync('modprobe', ['vfio-pci'], { stdio: 'pipe' });
    if (!existsSync('/sys/module/vfio_iommu_type1')) execFileSync('modprobe', ['vfio_iommu_type1'], { stdio: 'pipe' });
    writeFileSync(join(folder, 'driver_override'), 'vfio-pci');
    writeFileSync('/sys/bus/pci/drivers_probe', basename(folder));
  } catch (e) {
    throw new SysError(
      `${what}: ${(e as Error).message.trim()} (this needs root and the module vfio-pci)`,
      errno.EPERM,
    );
  }
  if (linkName(folder, 'driver') !== 'vfio-pci') {
    throw new SysError(`${what}: the kernel did not bind it (see dmesg)`, errno.ENODEV);
  }
}
