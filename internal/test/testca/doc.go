// Package testca is a certificate authority for tests: certificates for servers
// and clients on this host, made when they are asked for and gone with the test.
package testca
