/** ptnet and ptnetmap-memdev as PCI devices behind vfio-user. */
export * from './csb.ts';
export * from './memdev.ts';
export * from './pci-device.ts';
export * from './ptnet.ts';
export * from './rebuild.ts';
export * from './tenant.ts';
