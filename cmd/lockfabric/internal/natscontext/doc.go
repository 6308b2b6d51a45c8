// Package natscontext reads the contexts of the nats command, and converts their credentials and TLS settings to
// options of the NATS client.
//
// A setting that is unknown, or that can't be used for locks, is an error that says what to do instead. Errors never
// contain a secret. docs/adr/0011-libraries-tried.md says why no library is used.
package natscontext
