// filled by the kernel builder
