/** The control half of ports: names, ports, registrations. */
export * from './names.ts';
export * from './port.ts';
export * from './registration.ts';
