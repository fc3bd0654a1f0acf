/** The control half of ports: names and registrations. */
export * from './names.ts';
export * from './registration.ts';
