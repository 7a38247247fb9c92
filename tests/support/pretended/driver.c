/* The names of the CUDA driver that torch looks up; none is called on the pretended GPU. */
#define NAME(name) int name() { return 0; }
NAME(cuCtxGetCurrent) NAME(cuCtxSetCurrent) NAME(cuDeviceGet) NAME(cuDeviceGetAttribute)
NAME(cuDevicePrimaryCtxGetState) NAME(cuDevicePrimaryCtxRetain) NAME(cuFuncGetAttribute)
NAME(cuFuncSetAttribute) NAME(cuFuncSetCacheConfig) NAME(cuGetErrorString)
NAME(cuLaunchCooperativeKernel) NAME(cuLaunchKernel) NAME(cuLinkAddData_v2) NAME(cuLinkComplete)
NAME(cuLinkCreate_v2) NAME(cuModuleGetFunction) NAME(cuModuleLoad) NAME(cuModuleLoadData)
NAME(cuModuleLoadDataEx) NAME(cuModuleUnload) NAME(cuPointerGetAttribute)
NAME(cuOccupancyMaxActiveBlocksPerMultiprocessor) NAME(cuTensorMapEncodeTiled)
