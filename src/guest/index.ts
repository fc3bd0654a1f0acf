/** The ptnet driver and the transports it reaches devices by. */
export * from './driver.ts';
export * from './ifnet.ts';
export * from './kring.ts';
export * from './memdev.ts';
export * from './pci.ts';
export * from './pci-bus.ts';
export * from './tunables.ts';
export * from './strict-guest.ts';
export { StrictRing } from './strict-ring.ts';
export * from './vfio-user-pci.ts';
