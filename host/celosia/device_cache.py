class DeviceTensor: pass
class DeviceCache:
    @staticmethod
    def make_room(): pass
