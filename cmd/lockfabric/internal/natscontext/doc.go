// Package natscontext reads the contexts of the nats command, and makes options of
// the NATS client from what they say about whom to be and how to encrypt.
//
// A setting that isn't known, or can't be used for locks, is an error that says what to do instead. Errors never have
// a secret in them. docs/adr/0011-libraries-tried.md says why no library does it.
package natscontext
